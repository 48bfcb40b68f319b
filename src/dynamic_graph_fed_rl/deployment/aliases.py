"""Three paths with lists of numbers as JSON, for clients that know no safetensors: opt-in, and far larger.

The same tokens, checks and receipts as the protocol's; a string where numbers should be is refused, whatever it
encodes.
"""

from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.reception import JSON, LONGEST_WAIT_S, Receipt, Reception, read
from dynamic_graph_fed_rl.deployment.wire import ArraySpec, Refused

# text of a float32 number, at its longest, over its four bytes; also of the brackets around single numbers
_TEXT_FACTOR = 8


class WeightsUpload(BaseModel):
    """A client's parameters; without a round, for the one that is open."""

    model_config = ConfigDict(extra="forbid")

    weights: list[float]
    round: int | None = None


class TransitionsUpload(BaseModel):
    """A client's experience: nested lists by the names of the experience schema."""

    model_config = ConfigDict(extra="forbid")

    seq: int
    transitions: dict[str, list]


def offer_aliases(app: FastAPI, server: Reception) -> None:
    """Add `/upload-weights`, `/upload-transition` and `/download-params`."""
    coordinator = server.coordinator

    @app.post("/upload-weights")
    async def upload_weights(request: Request) -> dict[str, Any]:
        place, schema = await server.place_of(request), coordinator.half.parameters_schema

        def take(body: bytes) -> Receipt:
            sent = read(WeightsUpload, body)
            vector = _array(schema.arrays[0], wire.PARAMETERS, sent.weights)
            packed = wire.pack({wire.PARAMETERS: vector})
            rounds = coordinator.round if sent.round is None else sent.round
            return coordinator.upload_weights(place, rounds, packed)

        return await server.upload(request, place, "weights", JSON, _TEXT_FACTOR * schema.max_bytes, take)

    @app.post("/upload-transition")
    async def upload_transition(request: Request) -> dict[str, Any]:
        place, schema = await server.place_of(request), coordinator.pooled_schema
        known = {spec.name: spec for spec in schema.arrays}

        def take(body: bytes) -> Receipt:
            sent = read(TransitionsUpload, body)
            arrays = {name: _array(known.get(name), name, values) for name, values in sent.transitions.items()}
            if not 0 <= sent.seq <= 2**53:
                raise Refused("bad_request", f"seq {sent.seq}: must be from 0 to 2**53")
            return coordinator.upload_transitions(place, sent.seq, wire.pack(arrays))

        return await server.upload(request, place, "transitions", JSON, _TEXT_FACTOR * schema.max_bytes, take)

    @app.get("/download-params")
    async def download_params(
        request: Request, after: int | None = None, wait: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0
    ) -> dict[str, Any]:
        place = await server.place_of(request)
        found = await server.next_params(place, after, min(wait, LONGEST_WAIT_S))
        if found is None:
            return {"round": coordinator.round, "parameters": None}
        vector = wire.unpack(found.body, coordinator.half.parameters_schema)[wire.PARAMETERS]
        return {"round": found.round, "parameters": vector.tolist()}


def _array(spec: ArraySpec | None, name: str, values: list) -> np.ndarray:
    if spec is None:
        raise Refused("bad_names", f"'{name[:40]}' is not in the experience that this federation pools")
    try:
        # what is too large becomes infinite, and is refused as such
        with np.errstate(over="ignore"):
            return np.asarray(values, spec.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused("bad_shape", f"'{name}' must be numbers in lists of equal length") from error
