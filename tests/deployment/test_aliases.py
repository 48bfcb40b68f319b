"""The three JSON paths take and give what the protocol does."""

import httpx
import numpy as np
from served import TOKENS


def test_the_aliases_speak_json(serve) -> None:
    served = serve(clients=3, aliases=True)

    def say(place: int, method: str, path: str, **request) -> httpx.Response:
        return served.ask(method, path, headers={"Authorization": f"Bearer {TOKENS[place]}"}, **request)

    rows = {"reward": [3.0, 4.0], "action": [[0, 1], [1, 0]]}
    sent = {"seq": 0, "transitions": rows}
    assert [say(0, "POST", "/upload-transition", json=sent).json()["duplicate"] for _ in range(2)] == [False, True]
    for place, size in enumerate((1.0, 2.0, 6.0)):
        answer = say(place, "POST", "/upload-weights", json={"weights": [size] * 4})
        assert answer.json() == {"round": 0, "duplicate": False, "ticks": 0, "due": place == 2}
    answer = say(0, "GET", "/download-params?after=0&wait=10")
    assert answer.json() == {"round": 1, "parameters": [3.0] * 4}
    np.testing.assert_allclose(served.coordinator._state["memory"], 7.0)
    assert say(0, "GET", "/download-params?after=1").json() == {"round": 1, "parameters": None}
    before = served.holds()
    served.refused(say(0, "POST", "/upload-weights", json={"weights": [1.0] * 4, "round": 0}), 409, "stale_round")
    served.refused(say(0, "POST", "/upload-weights", json={"weights": [1.0] * 3}), 422, "bad_shape")
    for wrong in (b'{"weights": [NaN, 1, 1, 1]}', b'{"weights": [1e999, 1, 1, 1]}', b'{"weights": [1e39, 1, 1, 1]}'):
        headers = {"Authorization": f"Bearer {TOKENS[0]}", "Content-Type": "application/json"}
        answer = served.ask("POST", "/upload-weights", content=wrong, headers=headers)
        assert (answer.status_code, answer.json()["reason"]) in ((422, "not_finite"), (422, "bad_request"))
    for wrong, reason in (
        (rows | {"reward": [1.0]}, "bad_shape"),
        (rows | {"reward": [[1.0], [1.0, 2.0]]}, "bad_shape"),
        (rows | {"reward": ["gAN9cQAu", "x"]}, "bad_shape"),
        (rows | {"action": [[0, 2**40], [0, 0]]}, "bad_shape"),
        (rows | {"more": [1.0]}, "bad_names"),
        ({"reward": [1.0]}, "bad_names"),
    ):
        answer = say(0, "POST", "/upload-transition", json={"seq": 1, "transitions": wrong})
        served.refused(answer, 422, reason)
    served.refused(say(0, "POST", "/upload-transition", json={"seq": -1, "transitions": rows}), 422, "bad_request")
    assert served.holds() == before
