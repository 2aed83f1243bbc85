"""A model in this process: asked as a server would be, without HTTP."""
