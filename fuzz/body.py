"""Any bytes are a request's body, or a multipart form, or an error of ours that is short.

By hand: pip install atheris; mkdir new
PYTHONPATH=src python fuzz/body.py -max_total_time=600 -max_len=2000 -dict=fuzz/body.dict new fuzz/bodies
What it finds is in new/; of that, the smallest of each outcome is kept in fuzz/bodies, which tests/properties replays.
"""

from __future__ import annotations

import sys

_LONGEST_MESSAGE = 2000
_BOUNDARY = "multipart/form-data; boundary=x"


def one(data: bytes) -> None:
    """Its first byte chooses what the rest is: a body for one of the endpoints, a form, or a form's Content-Type.

    Raises:
        AssertionError: what is refused is repeated at length.
    """
    # Imported here, because atheris instruments what is imported after it was.
    from coldstream.errors import InvalidRequest
    from coldstream.serve.images.multipart import parse

    kind, rest = (data[0] % 6 if data else 0), data[1:]
    said = ""
    try:
        if kind < 4:
            body(kind, rest)
        elif kind == 4:
            parse(rest, _BOUNDARY)
        else:
            parse(b"--x\r\n\r\n--x--", rest.decode("latin-1"))
    except InvalidRequest as exc:
        said = str(exc)
    assert len(said) <= _LONGEST_MESSAGE


def body(kind: int, text: bytes) -> None:
    """A JSON body, counted as a large one is, as the model of its endpoint.

    Raises:
        InvalidRequest: as the server does.
    """
    from pydantic import ValidationError

    from coldstream.serve.api.schema import GenerateRequest
    from coldstream.serve.middleware.errors import from_validation
    from coldstream.serve.middleware.json_body import parsed
    from coldstream.serve.openai.responses_schema import ResponsesRequest
    from coldstream.serve.openai.schema import ChatRequest, CompletionRequest

    model = (GenerateRequest, ChatRequest, CompletionRequest, ResponsesRequest)[kind]
    value = parsed(text, large=0, chunk=7)
    assert repr(value) == repr(parsed(text))
    try:
        model.model_validate(value)
    except ValidationError as exc:
        raise from_validation(exc.errors(), tuple(model.model_fields), "application/json", value) from exc


def main() -> None:
    """Fuzz until stopped."""
    import atheris

    with atheris.instrument_imports():
        import coldstream.serve.images.multipart
        import coldstream.serve.openai.responses_schema  # noqa: F401
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
