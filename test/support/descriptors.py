# SPDX-License-Identifier: Apache-2.0
"""Prints what python3-pycriu knows as JSON: {"messages": {message: {field: [number, type, label, shown]}}, "magics": ...}."""

import importlib
import json
import pkgutil

import pycriu.images
from pycriu.images import magic, opts_pb2, pb2dict
from google.protobuf.descriptor import FieldDescriptor as F

TYPES = {getattr(F, "TYPE_" + name.upper()): name for name in
         "int32 uint32 sint32 fixed32 int64 uint64 sint64 fixed64 bool string bytes enum message".split()}
LABELS = {F.LABEL_REQUIRED: "required", F.LABEL_OPTIONAL: "optional", F.LABEL_REPEATED: "repeated"}

found = {}


def shown(field):
    """How pycriu writes the field: as our schemas say it."""
    if field.enum_type:
        return {"enum": {v.number: v.name for v in field.enum_type.values}}
    options = field.GetOptions().Extensions[opts_pb2.criu]
    if options.flags:
        return {"flags": options.flags, "bits": dict(pb2dict.flags_maps[options.flags])}
    if options.dict:
        return {"dict": options.dict, "names": pb2dict.dict_maps[options.dict][0][field.name]}
    if options.dev:
        return "odev" if options.odev else "dev"
    return "hex" if options.hex else "ip" if options.ipadd else options.conv or None



def add(message):
    found[message.name] = {
        f.name: [
            f.number,
            f.message_type.name if f.message_type else TYPES.get(f.type, str(f.type)),
            "packed" if f.label == F.LABEL_REPEATED and f.GetOptions().packed else LABELS[f.label],
            shown(f),
        ]
        for f in message.fields
    }
    for nested in message.nested_types:
        add(nested)


for package in (pycriu.images, importlib.import_module("pycriu")):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_pb2"):
            for each in importlib.import_module(f"{package.__name__}.{module.name}").DESCRIPTOR.message_types_by_name.values():
                add(each)
print(json.dumps({"messages": found, "magics": magic.by_name, "handlers": list(pycriu.images.images.handlers)}))
