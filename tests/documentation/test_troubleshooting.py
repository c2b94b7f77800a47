"""docs/troubleshooting.md: what it says that people see, they see."""

import re

import pytest
from documents import ROOT
from walkthrough import Checkout, Walk

PAGE = ROOT / "docs" / "troubleshooting.md"

PROVOKED = """
backend="{kind: mlflow, tracking_uri: 'http://127.0.0.1:9'}"
vlatrack run exp.yaml --runs away train.max_steps=1 "tracking.backends=[$backend]" > away.txt 2>&1 &
PATH=/usr/bin:/bin vlatrack status
vlatrack run nope.yaml
mkdir elsewhere; cd elsewhere; vlatrack run ../exp.yaml; cd ..
vlatrack run exp.yaml optim.lrr=1e-3
printf 'name: x\\n\\tseed: 1\\n' > tab.yaml; vlatrack run tab.yaml
vlatrack run exp.yaml tracking.backends=[mlflow, wandb]
vlatrack train exp.yaml --max-steps 8
vlatrack run exp.yaml data.cameras=[front]
vlatrack run exp.yaml action_head.action_dim=7
vlatrack run exp.yaml data.train.tasks=[]
vlatrack run exp.yaml data.train.exclude_tasks=[] "data.train.tasks=[open the window]"
vlatrack run exp.yaml train.max_steps=1 data.train.part=all
vlatrack run exp.yaml backbone.max_seq_len=100
CUDA_VISIBLE_DEVICES= vlatrack run exp.yaml train.device=cuda
CUDA_VISIBLE_DEVICES= vlatrack run exp.yaml train.precision=fp8
vlatrack evaluate nope
vlatrack run exp.yaml train.max_steps=1 optim.warmup_epochs=1
vlatrack run exp.yaml optim.lr=1e30 optim.clip_grad=1e30 optim.warmup_epochs=0
vlatrack run exp.yaml train.max_steps=1 tracking.backends=[wandb]
mkdir empty; vlatrack run --resume latest --runs empty
vlatrack run --resume RUN
vlatrack run --resume RUN optim.lr=3e-3
vlatrack compare latest 2
vlatrack compare latest nope
vlatrack export RUN runs
wait; cat away.txt
"""
"""A command a line, with what makes it fail. One waits a minute for its server, beside all others."""

ELSEWHERE = {
    "health: …; try: …": ("; try:", "tests/cli/test_health_command.py"),
    "… out of GPU memory …": ("out of GPU memory", "tests/training/test_out_of_memory.py"),
    "…: No space left on device; free some disk space": ("free some disk space", "tests/cli/test_system_errors.py"),
    "error: no off-screen OpenGL: tried …; install one: …": ("no off-screen OpenGL", "tests/envs/test_record.py"),
    "error: … does not fit metaworld: resolution: …": ("resolution: the policy", "tests/evaluation/test_fit.py"),
}
"""What needs a GPU, a simulator or a full disk: a part of it, and the test that provokes it."""


def messages() -> list[str]:
    """The first column, of what is a message and no description."""
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row for row in rows if row != "you see"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_message_of_the_page_is_what_people_see(walk: Walk, checkout: Checkout) -> None:
    commands = PROVOKED.replace("RUN", checkout.run_b).strip().splitlines()
    said = walk.run("bash", "-c", "\n".join(f"{{ {command}\n}} || true" for command in commands))
    shown = [message for message in messages() if message not in ELSEWHERE]
    assert len(shown) > 20
    patterns = {shown: re.escape(shown).replace("…", ".*") for shown in shown}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, said)] == [], said[-8000:]


def test_each_other_message_of_the_page_is_provoked_by_the_test_that_is_named_here() -> None:
    assert ELSEWHERE.keys() <= set(messages())
    for message, (part, test) in ELSEWHERE.items():
        assert part in message.replace("resolution: …", "resolution: the policy"), message
        assert part in (ROOT / test).read_text(), test
