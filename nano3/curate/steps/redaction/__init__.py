"""Personal data and secrets: where they are in a text, and the step that replaces them."""
