# SPDX-License-Identifier: Apache-2.0
"""Prints CRIU's own message types (python3-pycriu) as JSON: {message: {field: [number, type, label]}}."""

import importlib
import json
import pkgutil

import pycriu.images
from google.protobuf.descriptor import FieldDescriptor as F

TYPES = {getattr(F, "TYPE_" + name.upper()): name for name in
         "int32 uint32 sint32 fixed32 int64 uint64 sint64 fixed64 bool string bytes enum message".split()}
LABELS = {F.LABEL_REQUIRED: "required", F.LABEL_OPTIONAL: "optional", F.LABEL_REPEATED: "repeated"}

found = {}


def add(message):
    found[message.name] = {
        f.name: [
            f.number,
            f.message_type.name if f.message_type else TYPES.get(f.type, str(f.type)),
            "packed" if f.label == F.LABEL_REPEATED and f.GetOptions().packed else LABELS[f.label],
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
print(json.dumps(found))
