"""A simulator without a scripted expert."""

from toy_arena import ToyArena


class Silent(ToyArena):
    """Nobody knows how to act in it."""

    expert_action = None
