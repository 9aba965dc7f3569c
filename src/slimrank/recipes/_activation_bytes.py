# SPDX-License-Identifier: Apache-2.0
"""The peak of the activations that a plan leaves."""

from slimrank._errors import OptionError
from slimrank._study import Study, session_of
from slimrank.capture import peak_activation_bytes
from slimrank.forward import eval_mode, outside_inference_mode
from slimrank.peaks import count_peak
from slimrank.plan import Plan, check_structure
from slimrank.records import ActivationBytes


@outside_inference_mode
def activation_bytes(study: Study, plan: Plan) -> ActivationBytes:
    """Bytes of all activations that are alive at the worst moment of a forward pass of one sample.

    The network of the plan is built with random weights and run once, with one sample: nothing is fitted. Of
    a result, ``Result.activation_bytes`` has the same numbers.

    Args:
        study: with its model.
        plan: for this study.

    Returns:
        The peaks of the model of the study and of what the plan leaves of it. An activation is alive from the
        operation that makes it to the last one that reads it; operations are those that torch runs, and
        runtimes that fuse some need less.

    Raises:
        OptionError: no study, or no plan.
        StudyError: the study was loaded without a model.
        PlanError: the plan is for another model.
    """
    session = session_of(study)
    if not isinstance(plan, Plan):
        raise OptionError(f"plan is a {type(plan).__name__}; give a Plan, e.g. study.plan(macs=0.5)")
    sample = session.captured.sample
    with eval_mode(session.original):
        before = peak_activation_bytes(session.original, sample)
    if not plan.steps:
        return ActivationBytes(before=before, after=before)
    check_structure(plan, study.structure, step=-1)
    after = count_peak(session.original, plan.steps[-1], sample, has_bias=plan.has_bias)
    return ActivationBytes(before=before, after=after)
