"""The 50 tasks of Meta-World v3 and what a person would say to have each of them done."""

from difflib import get_close_matches

from vlatrack.errors import DataError

INSTRUCTIONS = {
    "assembly-v3": "pick up the ring and put it on the peg",
    "basketball-v3": "put the basketball into the basket",
    "bin-picking-v3": "move the block from one bin to the other",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "press the button from above, behind the wall",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "reach around the wall and press the button",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "lift the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "hammer-v3": "hammer the nail into the wall",
    "hand-insert-v3": "reach into the hole with the block",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg into the hole in the side",
    "peg-unplug-side-v3": "pull the peg out of the hole in the side",
    "pick-out-of-hole-v3": "take the block out of the hole",
    "pick-place-v3": "pick up the block and bring it to the goal",
    "pick-place-wall-v3": "pick up the block and bring it over the wall to the goal",
    "plate-slide-back-side-v3": "slide the plate out of the goal to the side",
    "plate-slide-back-v3": "slide the plate back out of the goal",
    "plate-slide-side-v3": "slide the plate into the goal at the side",
    "plate-slide-v3": "slide the plate into the goal",
    "push-back-v3": "push the block back to the goal",
    "push-v3": "push the block to the goal",
    "push-wall-v3": "push the block around the wall to the goal",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "reach over the wall to the goal",
    "shelf-place-v3": "put the block on the shelf",
    "soccer-v3": "push the ball into the soccer goal",
    "stick-pull-v3": "pull the container with the stick",
    "stick-push-v3": "push the container with the stick",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}


def instruction_for(task: str) -> str:
    """The instruction of a task such as `window-open-v3`; raises DataError with a suggestion."""
    if task in INSTRUCTIONS:
        return INSTRUCTIONS[task]
    close = get_close_matches(task, INSTRUCTIONS, n=1, cutoff=0.4)
    remedy = f"did you mean {close[0]!r}?" if close else f"tasks: {', '.join(INSTRUCTIONS)}"
    raise DataError(f"Meta-World has no task {task!r}; {remedy}")
