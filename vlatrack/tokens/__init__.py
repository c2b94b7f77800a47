"""How actions, states, images and text become the token ids of one sequence."""
