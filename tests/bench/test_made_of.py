"""What a peer's model file says of its own conversion."""

from __future__ import annotations

import struct
from pathlib import Path

from coldstream.bench.made_of import made_of


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def test_a_gguf_files_tensors_are_counted_by_type(tmp_path: Path) -> None:
    values = [
        string("general.architecture") + struct.pack("<I", 8) + string("gemma3"),
        string("a.number") + struct.pack("<If", 6, 1.5),
        string("a.list") + struct.pack("<IIQ", 9, 8, 2) + string("x") + string("yy"),
        string("another") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, 2, 3),
        string("a.flag") + struct.pack("<IB", 7, 1),
    ]
    tensors = [
        string(f"t{number}") + struct.pack("<IQQIQ", 2, 8, 8, kind, 0) for number, kind in enumerate([8, 8, 0, 139])
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values + tensors))
    assert made_of(str(path)) == "GGUF, 2 tensors Q8_0, 1 tensors F32, 1 tensors type 139"


def test_an_openvino_folder_says_how_its_weights_were_compressed(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text(
        '<net><layers/><rt_info><nncf><weight_compression><group_size value="-1"/><mode value="int8_asym"/>'
        "</weight_compression></nncf></rt_info></net>"
    )
    assert made_of(str(tmp_path)) == "OpenVINO, group_size -1, mode int8_asym"
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    assert made_of(str(tmp_path)) == "OpenVINO"


def test_of_anything_else_nothing_is_said(tmp_path: Path) -> None:
    assert made_of("gs://bucket/model") == made_of(str(tmp_path)) == ""
