"""The server: the page, what the page needs to run a model by itself, and OpenAI's interface to this machine's engine.

``app.create_app`` puts the parts together, ``server.Server`` runs them in this process, ``wgllm.cli.serve`` has the
commands. Starlette and uvicorn are imported by the modules that need them, never by the package itself.
"""
