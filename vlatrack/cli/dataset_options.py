"""Options of the commands that open a dataset by its path: what its format cannot say of itself."""

from typing import Annotated

import typer

Action = Annotated[
    str, typer.Option(help="Feature with the action (LeRobot, RLDS); for RLDS several, with commas between them.")
]
State = Annotated[str, typer.Option(help="Feature with the state, if there is one (LeRobot, RLDS).")]
Fps = Annotated[
    float | None, typer.Option(min=0.1, help="Steps in a second (RLDS, which does not store it).", show_default=False)
]
Split = Annotated[str, typer.Option(help="Which split is read (RLDS).")]
Instruction = Annotated[str, typer.Option(help="Feature with the instruction (RLDS).")]

ACTION, STATE, SPLIT, INSTRUCTION = "action", "observation.state", "train", "language_instruction"
