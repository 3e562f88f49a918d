"""``POST /predict``: one or several images or texts, in several formats."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from thawline.data import DataKind
from thawline.registry import Answer
from thawline.registry.names import COLUMNS
from thawline.serving.classifying import Classifying
from thawline.serving.requests import items_of
from thawline.serving.served import ServedModel

__all__ = ["PREDICT_BODIES", "ItemPrediction", "PredictAnswer", "router"]


class ClassProbability(BaseModel):
    """One class with its probability."""

    label: str
    probability: float


class ItemPrediction(BaseModel):
    """The prediction for one image or text."""

    label: str
    probability: float
    top: list[ClassProbability]
    """The most probable classes, the best first."""
    probabilities: Annotated[dict[str, float], Field(deprecated=True)]
    """The same as a mapping, whose order JavaScript and others lose if class names are integers; it will be removed
    after one more release."""

    prediction_set: list[str] | None = None
    """Classes that the item may belong to, the most probable first; ``null`` if the version has no prediction sets."""
    unknown: bool | None = None
    """Whether the item seems to belong to none of the classes; ``null`` if the version cannot tell."""


class PredictAnswer(BaseModel):
    """The answer to ``POST /predict``: one prediction for each image or text, in order."""

    model: str
    version: str
    predictions: list[ItemPrediction]


def router(classifying: Classifying) -> APIRouter:
    """The route for classification."""
    routes = APIRouter()
    options = classifying.options

    @routes.post("/predict", response_model=PredictAnswer)
    async def predict(request: Request, top_k: Annotated[int, Query(ge=1, le=10_000)] = 5) -> PredictAnswer:
        """Classify one or several images or texts. Images: multipart files, a raw body of type image/*, or JSON with
        base64. Texts: JSON, or a body of type text/plain."""
        async with classifying.bodies.read(request) as body:
            model = classifying.model  # the same for the whole request: the next version may be of another kind
            items = await items_of(request.headers, body, model.kind, max_items=options.max_items)
            answers = await classifying(request, model, items)
        return PredictAnswer(
            model=model.name,
            version=model.version,
            predictions=[_prediction(model, answer, top_k) for answer in answers],
        )

    return routes


def _prediction(model: ServedModel, answer: Answer, top_k: int) -> ItemPrediction:
    ranked = sorted(zip(model.classes, answer.probabilities, strict=True), key=lambda each: -each[1])[:top_k]
    top = [ClassProbability(label=label, probability=probability) for label, probability in ranked]
    return ItemPrediction(
        label=top[0].label,
        probability=top[0].probability,
        top=top,
        probabilities=dict(ranked),
        prediction_set=model.prediction_set(answer.probabilities),
        unknown=model.unknown(answer),
    )


_ONE_IMAGE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "format": "byte"}
_STRING = {"type": "string"}


def _one_or_several(kind: DataKind, schema: dict[str, str]) -> dict[str, Any]:
    """JSON with one item, or with a list of them."""
    forms: dict[str, Mapping[str, Any]] = {COLUMNS[kind]: schema, kind: {"type": "array", "items": schema}}
    return {"schema": {"oneOf": [_object(name, form) for name, form in forms.items()]}}


def _object(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


PREDICT_BODIES: dict[DataKind, dict[str, Any]] = {
    "images": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "array", "items": _ONE_IMAGE}}}
        },
        "image/*": {"schema": _ONE_IMAGE},
        "application/json": _one_or_several("images", _BASE64),
    },
    "texts": {
        "application/json": _one_or_several("texts", _STRING),
        "text/plain": {"schema": _STRING},
    },
}
