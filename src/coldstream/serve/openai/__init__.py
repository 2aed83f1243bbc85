"""OpenAI's HTTP API on our engine. Every documented field is honoured, or refused by name with 400.

https://platform.openai.com/docs/api-reference/chat and /completions, as the official Python package types them.
"""
