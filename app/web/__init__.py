"""The page: `gpumem web`, or `python -m app.web`.

What a visitor typed is a flat dictionary, the form's state. Pure functions read it (`form`), answer
it (`answer`, `fits`), and write the answer as HTML (`render`, `charts`); only `page` and `server`
know Gradio and HTTP.
"""
