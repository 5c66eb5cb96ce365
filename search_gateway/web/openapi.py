# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of the HTTP API, with the limits of this gateway."""

from __future__ import annotations

from typing import Any

import captioner
from captioner.model_contract import ModelContract
from search_api import search_pb2
from search_gateway.api.request_validation import (
    MAX_EXCLUDED,
    MAX_LENGTH_PENALTY,
    MAX_QUERY_CHARACTERS,
    MAX_RESULTS,
    MAX_WORD_CHARACTERS,
    MIN_LENGTH_PENALTY,
)
from search_gateway.config import GatewayConfig
from search_gateway.web import request_options
from search_gateway.web.request_options import CAPTION_OPTIONS, SEARCH_OPTIONS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_OPTIONAL_TEXT: Schema = {"type": ["string", "null"]}
_OPTIONAL_SHARE: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_THUMBNAIL_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif")

# Where this API refuses a request: what it means.
_PROBLEMS = {
    "400": "a value, the form or the photo cannot be used; `detail` says what to change",
    "401": "a valid key is needed: `Authorization: Bearer KEY`",
    "403": "the key does not allow this method, or the request comes from a page of another server",
    "408": "the body did not arrive in time",
    "413": "the photo has too many bytes",
    "415": "the body is neither a photo nor a form, or it is compressed",
    "429": "the server is full, or the key's quota is used up; `Retry-After` says when to come back",
    "500": "the server failed; its operator finds why under `request_id`",
    "503": "the models do not run at the moment, or the server is stopping",
    "504": "the deadline passed",
}


def document(config: GatewayConfig, contract: ModelContract) -> Schema:
    """Return the document.

    Args:
        config: the settings, whose limits and defaults it names.
        contract: of the model.
    """
    options = _options(config, contract)
    events = (
        "Server-sent events; each `data` line is one JSON object. `caption` (CaptionEvent) is followed by a `result` "
        "(Result) for each result and by `summary` (SearchAnswer without `results`). `error` (Problem) may follow any "
        "event; an error before the first one is an HTTP status. Comments keep the connection alive."
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Captrieve",
            "version": captioner.__version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Reverse image search through words: a photo is captioned, its most likely words are "
            "searched for, and the pictures that look like the photo and agree with the words are kept.",
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/search": {
                "post": _method(
                    "search",
                    "Search with a photo",
                    {name: options[name] for name in SEARCH_OPTIONS},
                    config,
                    _json("SearchAnswer"),
                )
            },
            "/v1/search:stream": {
                "post": _method(
                    "streamSearch",
                    "Search with a photo, and get each part of the answer as soon as it is there",
                    {name: options[name] for name in SEARCH_OPTIONS},
                    config,
                    {"description": events, "content": {"text/event-stream": {}}},
                )
            },
            "/v1/caption": {
                "post": _method(
                    "caption",
                    "Describe a photo in words, without a search",
                    {name: options[name] for name in CAPTION_OPTIONS},
                    config,
                    _json("CaptionAnswer"),
                )
            },
            "/v1/thumbnails/{id}": {
                "get": {
                    "operationId": "thumbnail",
                    "summary": "A thumbnail that an answer of the last minutes names",
                    "security": [{}],
                    "parameters": [{"name": "id", "in": "path", "required": True, "schema": _TEXT}],
                    "responses": {
                        "200": {
                            "description": "the picture",
                            "content": {one: {"schema": {}} for one in _THUMBNAIL_TYPES},
                        },
                        "404": _problem("there is no such thumbnail, or it is too old"),
                    },
                }
            },
            "/v1/info": {
                "get": {
                    "operationId": "info",
                    "summary": "The model, the providers, the limits and the defaults of this server",
                    "security": [{}],
                    "responses": {"200": _json("Info")},
                }
            },
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _method(name: str, summary: str, options: dict[str, Schema], config: GatewayConfig, answer: Schema) -> Schema:
    deadline = {
        "name": "X-Timeout-Seconds",
        "in": "header",
        "description": f"deadline in seconds; at most {config.max_deadline_seconds:g}, which is the default",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    }
    photo = {"type": "string", "contentMediaType": "application/octet-stream", "description": "the bytes of the file"}
    form = {
        "type": "object",
        "required": ["photo"],
        "properties": {"photo": {**photo, "maxLength": config.max_photo_bytes}, **options},
        "additionalProperties": False,
    }
    raw: Schema = {"schema": {}}
    return {
        "operationId": name,
        "summary": summary,
        "description": "An option is given once: in the address, or as a part of the form.",
        "parameters": [deadline, *({"name": one, "in": "query", "schema": schema} for one, schema in options.items())],
        "requestBody": {
            "required": True,
            "description": f"A JPEG, PNG, WebP or GIF file of at most {config.max_photo_bytes} bytes.",
            "content": {"multipart/form-data": {"schema": form}, "image/*": raw, "application/octet-stream": raw},
        },
        "responses": {"200": answer, **{code: _problem(text) for code, text in _PROBLEMS.items()}},
    }


def _options(config: GatewayConfig, contract: ModelContract) -> dict[str, Schema]:
    word = {"type": "string", "minLength": 1, "maxLength": MAX_WORD_CHARACTERS}
    price = {"type": "number", "minimum": 0, "maximum": 1e12}
    return {
        "num_beams": {"type": "integer", "minimum": 1, "maximum": contract.max_beams, "default": 1},
        "length_penalty": {"type": "number", "minimum": MIN_LENGTH_PENALTY, "maximum": MAX_LENGTH_PENALTY},
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": contract.max_tokens},
        "query_rule": {"type": "string", "enum": list(request_options.RULES)},
        "region": {
            "type": "string",
            "pattern": r"^(0|1|0\.\d{1,6}),(0|1|0\.\d{1,6}),(1|0\.\d{1,6}),(1|0\.\d{1,6})$",
            "examples": ["0.5,0,0.5,1"],
            "description": "the part of the upright photo that is used: left edge, top edge, width and height, as "
            "fractions of its width and height; within the photo, and of at least 16 x 16 of its pixels",
        },
        "query_override": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_QUERY_CHARACTERS,
            "description": "search for these words; the photo is not captioned",
        },
        "override_colour": {**word, "description": "the colour in the query, instead of the caption's"},
        "override_thing": {**word, "description": "the product type in the query, instead of the caption's"},
        "exclude": {
            "type": "string",
            "minLength": 1,
            "examples": ["striped,red"],
            "description": f"words that no result's title may have, with commas between them, at most {MAX_EXCLUDED}",
        },
        "provider": {"type": "string", "enum": [name for step in config.provider_steps for name in step]},
        "max_results": {"type": "integer", "minimum": 1, "maximum": MAX_RESULTS, "default": config.default_max_results},
        "min_visual_score": {"type": "number", "minimum": -1, "maximum": 1, "default": config.min_visual_score},
        "min_semantic_score": {"type": "number", "minimum": 0, "maximum": 1, "default": config.min_semantic_score},
        "min_price": {**price, "description": "lowest price of a product; only the provider catalog can filter"},
        "max_price": {**price, "description": "highest price of a product"},
        "available": {"type": "boolean", "description": "only products that are in stock, or only those that are not"},
        "category": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_QUERY_CHARACTERS,
            "description": "the category of a product, exactly as the catalogue has it",
        },
        "include_dropped": {
            "type": "boolean",
            "default": False,
            "description": "also return the dropped "
            "candidates with their reasons, and of every candidate what adds up to its score",
        },
    }


def _json(schema: str) -> Schema:
    return {"description": "the answer", "content": {"application/json": {"schema": _ref(schema)}}}


def _problem(description: str) -> Schema:
    return {"description": description, "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _schemas() -> dict[str, Schema]:
    caption = {
        "caption": _TEXT,
        "words": _list(_ref("Word")),
        "log_probability": _NUMBER,
        "complete": {"type": "boolean"},
    }
    confidence = {"confidence": _OPTIONAL_SHARE, "unsure_reason": _TEXT}
    query = {
        "query": _TEXT,
        "query_rule": {"type": "string", "enum": ["", *request_options.RULES]},
        "paper_query": {
            "type": "string",
            "description": "by the paper's rule, where its words differ from the query's",
        },
    }
    timings: Schema = {"type": "object", "additionalProperties": _NUMBER}
    verdicts = [name.removeprefix("VERDICT_").lower() for name in search_pb2.Verdict.keys()[1:]]
    credit: dict[str, Schema] = {
        "licence": {"type": "string", "description": 'of the picture, as "CC BY-SA 4.0"; empty where unknown'},
        "licence_url": _TEXT,
        "attribution": {"type": "string", "description": "the credit line that must be shown with the result"},
    }
    result = _object(
        title=_TEXT,
        url=_TEXT,
        image_url=_TEXT,
        thumbnail_url={"type": "string", "description": "on this server, for five minutes; empty without a picture"},
        source=_TEXT,
        width=_WHOLE,
        height=_WHOLE,
        visual_score={"type": "number", "minimum": -1.001, "maximum": 1.001},
        semantic_score=_SHARE,
        score=_NUMBER,
        reason=_TEXT,
        duplicates=_list(_object(source=_TEXT, url=_TEXT, title=_TEXT, **credit)),
        picture_words={"type": "string", "deprecated": True},
        provider={"type": "string", "description": "which one found it, where several were asked together"},
        **credit,
        findings=_list(_ref("Finding")),
    )
    result["properties"]["contributions"] = _list(_object(part=_TEXT, value=_NUMBER))
    answer = _object(
        photo={"type": "string", "description": "the file name in the form"},
        caption=_OPTIONAL_TEXT,
        words=_list(_ref("Word")),
        **query,
        word_override=_object(colour=_OPTIONAL_TEXT, thing=_OPTIONAL_TEXT),
        excluded=_list(_TEXT),
        no_product_probability=_SHARE,
        **confidence,
        readings=_list(_ref("Reading")),
        provider=_TEXT,
        results=_list(_ref("Result")),
        counts=_object(**dict.fromkeys((field.name for field in search_pb2.Counts.DESCRIPTOR.fields), _WHOLE)),
        nearest_miss={"oneOf": [_ref("Result"), {"type": "null"}]},
        empty_reason=_TEXT,
        timings_ms=timings,
        degraded=_list(_object(part=_TEXT, reason=_TEXT)),
        model=_TEXT,
    )
    answer["properties"]["dropped"] = _list(
        {"allOf": [_ref("Result"), _object(verdict={"type": "string", "enum": verdicts})]}
    )
    return {
        "Word": _object(text=_TEXT, probability=_SHARE, alternatives=_list(_object(text=_TEXT, probability=_SHARE))),
        "Reading": _object(query=_TEXT, probability=_SHARE),
        "Finding": _object(
            kind={"type": "string", "description": "what `reason` says, for programs: search.proto lists the kinds"},
            words=_list(_TEXT),
            probability=_SHARE,
        ),
        "Result": result,
        "SearchAnswer": answer,
        "CaptionAnswer": _object(
            photo=_TEXT,
            **caption,
            **query,
            no_product_probability=_SHARE,
            **confidence,
            timings_ms=timings,
            model=_TEXT,
        ),
        "CaptionEvent": _object(
            **{**caption, "caption": _OPTIONAL_TEXT}, **query, readings=_list(_ref("Reading")), **confidence
        ),
        "Info": _object(
            model=_TEXT,
            providers=_list(_TEXT),
            max_photo_bytes=_WHOLE,
            max_photo_pixels=_WHOLE,
            defaults=_object(min_visual_score=_NUMBER, min_semantic_score=_NUMBER, max_results=_WHOLE),
            version=_TEXT,
        ),
        "Problem": _object(type=_TEXT, title=_TEXT, status=_WHOLE, detail=_TEXT, code=_TEXT, request_id=_TEXT),
    }
