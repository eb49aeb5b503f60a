"""A reward of your own: a rationale is paid for naming the instrument that was asked about.

Name it in a config, with a weight (the path counts from the folder in which the command runs):

    [rft]
    rewards = { format = 0.5, answer = 1, box = 1, coherence = 1, "examples/custom_reward.py:names_the_subject" = 0.5 }

A reward is a function of the reply's text and the truth, and returns a number in [0, 1], or None where it does not
apply. Whether it applies may depend on the question alone. It is tried on some replies before training starts.
"""

from surgery_r1 import codec
from surgery_r1.rewards import Truth
from surgery_r1.vocab import spoken


def names_the_subject(text: str, truth: Truth) -> float | None:
    """1 where the rationale names what was asked about, else 0; None for questions without an instrument.

    >>> from surgery_r1.rewards.custom import load_reward
    >>> load_reward("examples/custom_reward.py:names_the_subject").__name__
    'names_the_subject'
    """
    if not truth.parts["reasoning"] or truth.kind not in ("state", "location"):
        return None
    rationale = codec.parse(text).rationale or ""
    return float(spoken(truth.subject) in spoken(rationale))
