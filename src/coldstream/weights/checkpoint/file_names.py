"""The names of the small files of a checkpoint that serving reads. One list, for every scheme."""

from __future__ import annotations

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What makes a tokenizer, with its templates and what it needs to know of the model."""

CONVERTED = "tokenizer.converted"
"""What stands in place of tokenizer.json where it was made of it; it is found in a listing alone."""

TEMPLATES_BELOW = ("additional_chat_templates/default.jinja", "additional_chat_templates/tool_use.jinja")
"""Templates in the folder where transformers 5 puts those that have a name. A listing of one folder does not show them;
of all names these two are picked without being asked for."""

WELL_KNOWN = tuple(dict.fromkeys((*TOKENIZER, *TEMPLATES_BELOW, "model.safetensors", "model.safetensors.index.json")))
"""What a web server, which cannot list, is asked for."""
