"""JSON Schema made from what reads and writes JSON: kinds of values, and structs."""

from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

from msgspec import Struct, UnsetType, inspect

from lockstep.requests import kinds

Schema = dict[str, Any]
UUID_PATTERN = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"
INTEGER: Schema = {"type": "integer"}
STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ANSWERED_UUID: Schema = {"type": "string", "format": "uuid"}


def schema_of(kind: kinds.Kind) -> Schema:
    """What `kind` takes; what JSON Schema cannot say stands in the description."""
    match kind:
        case kinds.Integer(minimum, maximum, allows_zero):
            schema: Schema = {"type": "integer", "minimum": minimum, "maximum": maximum}
            return schema if allows_zero else schema | {"not": {"const": 0}}
        case kinds.Boolean():
            return {"type": "boolean"}
        case kinds.Uuid():
            return {"type": "string", "pattern": UUID_PATTERN}
        case kinds.Text(max_length):
            return {"type": "string", "minLength": 1, "maxLength": max_length}
        case kinds.Choice(of):
            return {"type": "string", "enum": [each.value for each in of]}
        case kinds.Object(max_bytes):
            schema = {"type": "object"}
            most = f"At most {max_bytes} bytes as JSON"
            return schema if max_bytes is None else schema | {"description": most}
        case kinds.List(of, max_length, min_length, distinct):
            schema = {"type": "array", "items": schema_of(of), "maxItems": max_length}
            if min_length:
                schema["minItems"] = min_length
            return schema if distinct is None else schema | {"description": f"No {distinct} twice"}
        case kinds.Record(fields, required):
            return record_of({name: schema_of(each) for name, each in fields.items()}, required)
    raise TypeError(f"no schema for {kind}")


def record_of(properties: dict[str, Schema], required: Iterable[str]) -> Schema:
    """A requested object: it has no other fields, and null stands for an absent one."""
    required = list(required)
    read = {name: each if name in required else or_null(each) for name, each in properties.items()}
    schema = {"type": "object", "properties": read, "additionalProperties": False}
    return schema | {"required": required} if required else schema


def schema_of_struct(struct: type[Struct]) -> Schema:
    """What is said as `struct`. A field that has a default may be absent.

    One that may be UNSET, whose default is None, is left out instead of being null.
    """
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    hints = get_type_hints(struct, include_extras=True)
    properties, optional = {}, []
    if info.tag_field is not None:
        properties[info.tag_field] = STRING | {"const": info.tag}
    for field in info.fields:
        type_ = field.type
        if not field.required:
            optional.append(field.encode_name)
        if field.default is None and UnsetType in get_args(hints[field.name]):
            type_ = _without_none(type_)
        properties[field.encode_name] = _schema_of_type(type_)
    return object_of(properties, optional)


def _without_none(type_: inspect.Type) -> inspect.Type:
    if not isinstance(type_, inspect.UnionType):
        return type_
    types = tuple(each for each in type_.types if not isinstance(each, inspect.NoneType))
    return types[0] if len(types) == 1 else inspect.UnionType(types)


def _schema_of_type(type_: inspect.Type) -> Schema:
    match type_:
        case inspect.IntType():
            return INTEGER
        case inspect.FloatType():
            return {"type": "number"}
        case inspect.StrType(max_length=max_length, pattern=pattern):
            limits = {"maxLength": max_length, "pattern": pattern}
            return STRING | {name: limit for name, limit in limits.items() if limit is not None}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.EnumType(cls):
            return {"type": "string", "enum": [each.value for each in cls]}
        case inspect.LiteralType(values):
            return {"type": "string", "enum": list(values)}
        case inspect.ListType(item_type):
            return {"type": "array", "items": _schema_of_type(item_type)}
        case inspect.DictType():
            return {"type": "object"}
        case inspect.StructType(cls):
            return ref_to("schemas", name_of(cls))
        case inspect.UnionType(types) if any(isinstance(each, inspect.NoneType) for each in types):
            return or_null(_schema_of_type(_without_none(type_)))
        case inspect.UnionType(types):
            return {"anyOf": [_schema_of_type(each) for each in types]}
        case inspect.AnyType():
            return {}
        case inspect.Metadata(inspect.RawType(), schema):
            return {**(schema or {})}
        case inspect.Metadata(of, schema):
            return _schema_of_type(of) | (schema or {})
    raise TypeError(f"no schema for {type_}")


def name_of(struct: type[Struct]) -> str:
    """Its name among the document's schemas."""
    return struct.__name__.removesuffix("Json")


def object_of(properties: dict[str, Schema], optional: Iterable[str] = ()) -> Schema:
    """An answered object."""
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required}


def or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        schema = schema | {"enum": [*schema["enum"], None]}
    if "type" in schema:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(name: str) -> Schema:
    return {"type": "array", "items": ref_to("schemas", name)}


def ref_to(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def anchored(pattern: str) -> str:
    return f"^{pattern}$"
