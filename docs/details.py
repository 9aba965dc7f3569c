# SPDX-License-Identifier: Apache-2.0
"""A step of the site's build: Markdown inside of <details> is rendered, as where the sources are read."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page's source, its <details> marked for the extension md_in_html.

    Args:
        markdown: the source.

    Returns:
        The source with ``markdown="1"`` in each opening tag.
    """
    return markdown.replace("<details>", '<details markdown="1">')
