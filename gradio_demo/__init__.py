"""A page to try F3 in a browser; installed as `f3_gradio_demo`."""
