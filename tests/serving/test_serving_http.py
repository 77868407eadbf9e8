"""What every caller may rely on, with a model or without: forms of errors, bounds, ids, headers, metrics, OpenAPI."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from evensong.serving.app import create_app
from evensong.serving.around import MAX_BODY_BYTES
from evensong.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, serving={"max_k": 50, "default_k": 10})


@pytest.fixture
def client(settings: Settings) -> TestClient:
    """The app without its lifespan: nothing looks for a model."""
    return TestClient(create_app(settings), raise_server_exceptions=False)


def refusal(client: TestClient, method: str, url: str, **arguments: object) -> tuple[int, dict[str, object]]:
    response = client.request(method, url, **arguments)  # type: ignore[arg-type]
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "what_to_do", "request_id", "details"}
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert 'File "' not in response.text
    return response.status_code, body["error"]


def test_process_lives_before_a_model_is_loaded(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("url", ["/readyz", "/recommend?user_id=u1", "/users/u1/history"])
def test_service_without_model_says_what_to_do(client: TestClient, url: str) -> None:
    status, error = refusal(client, "GET", url)
    assert status == 503
    assert error["code"] == "not_ready"
    assert error["what_to_do"]


@pytest.mark.parametrize(
    ("query", "field", "came"),
    [
        ("user_id=u1&k=0", "query.k", "0"),
        ("user_id=u1&k=-3", "query.k", "-3"),
        ("user_id=u1&k=10000", "query.k", "10000"),
        ("user_id=u1&k=51", "query.k", "51"),
        ("user_id=u1&k=many", "query.k", "'many'"),
        ("user_id=u1&k=99999999999999999999999", "query.k", "99999999999999999999999"),
        ("k=3", "query.user_id", "none"),
        ("user_id=", "query.user_id", "''"),
        ("user_id=u1&kk=3", "query.kk", "'3'"),
        ("user_id=u%001", "query.user_id", repr("u\x001")),
        ("user_id=" + "u" * 257, "query.user_id", "'uuu"),
    ],
)
def test_bad_query_is_refused_with_expected_came_and_what_to_do(
    client: TestClient, query: str, field: str, came: str
) -> None:
    status, error = refusal(client, "GET", f"/recommend?{query}")
    assert status == 422
    assert error["code"] == "invalid_request"
    (detail,) = error["details"]  # type: ignore[misc]
    assert detail["field"] == field
    assert detail["expected"]
    assert detail["came"].startswith(came)
    assert field in str(error["message"])
    assert error["what_to_do"]


@pytest.mark.parametrize("k", [0, 10_000])
def test_k_past_a_bound_names_both_bounds(client: TestClient, k: int) -> None:
    _, error = refusal(client, "GET", f"/recommend?user_id=u1&k={k}")
    assert f"a number from 1 to 50, came {k}" in str(error["message"])


@pytest.mark.parametrize(
    "body",
    [
        {"user_id": "u1", "k": 0},
        {"user_id": "u1", "k": 10_000},
        {"user_id": "u1", "surprise": 1},
        {"user_id": "u1", "context": {"as_of": "2026-01-01"}},
        {"user_id": "u1", "exclude_item_ids": ["x" * 257]},
        {"user_id": "u1", "exclude_item_ids": ["x"] * 1001},
        {"user_id": "u1", "exclude_item_ids": "x"},
        {"user_id": 7},
        {"user_id": None},
        {},
        [],
        "text",
    ],
)
def test_bad_body_is_refused(client: TestClient, body: object) -> None:
    status, error = refusal(client, "POST", "/recommend", json=body)
    assert status == 422
    assert error["details"]


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_body_that_is_no_json_is_refused(client: TestClient, text: bytes) -> None:
    headers = {"content-type": "application/json"}
    status, error = refusal(client, "POST", "/recommend", content=text, headers=headers)
    assert status in (400, 422)
    assert error["what_to_do"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", None])
def test_body_that_is_not_said_to_be_json_is_refused(client: TestClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    status, error = refusal(client, "POST", "/recommend", content=b'{"user_id": "u1"}', headers=headers)
    assert (status, error["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in str(error["what_to_do"])


def test_json_is_json_whatever_stands_behind_its_name(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    status, error = refusal(client, "POST", "/recommend", content=b'{"user_id": "u1"}', headers=headers)
    assert (status, error["code"]) == (503, "not_ready")


@pytest.mark.parametrize("k", [True, "5", 5.0, 1.5])
def test_number_of_a_body_is_a_number(client: TestClient, k: object) -> None:
    status, error = refusal(client, "POST", "/recommend", json={"user_id": "u1", "k": k})
    assert status == 422
    assert "body.k" in str(error["message"])


@pytest.mark.parametrize("user_id", ["ünï", "用户", "🦉", "a/b", "a b", "a?b#c", "..", "%2F"])
def test_any_text_is_a_user_id(client: TestClient, user_id: str) -> None:
    from urllib.parse import quote

    # 503, for there is no model: the id itself was taken
    assert refusal(client, "GET", "/recommend", params={"user_id": user_id})[0] == 503
    assert refusal(client, "POST", "/recommend", json={"user_id": user_id})[0] == 503
    if user_id != "..":
        assert refusal(client, "GET", f"/users/{quote(user_id, safe='')}/history")[0] == 503


def test_half_a_character_is_refused_and_not_a_defect(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    status, error = refusal(client, "POST", "/recommend", content=b'{"user_id": "\\ud800"}', headers=headers)
    assert status == 422
    assert "body.user_id" in str(error["message"])


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/", "/recommend?user_id=u1"])
def test_head_answers_as_get_does(client: TestClient, path: str) -> None:
    by_get = client.get(path)
    by_head = client.head(path)
    assert by_head.status_code == by_get.status_code
    assert by_head.headers["content-type"] == by_get.headers["content-type"]


def test_requests_by_head_are_counted_as_such(client: TestClient) -> None:
    client.head("/healthz")
    assert 'evensong_requests_total{method="HEAD",route="/healthz",status="200"} 1.0' in client.get("/metrics").text


def test_no_other_site_s_page_may_read_an_answer(client: TestClient) -> None:
    asked = {"origin": "https://elsewhere.example", "access-control-request-method": "GET"}
    preflight = client.options("/recommend", headers=asked)
    assert preflight.status_code == 405
    assert {part.strip() for part in preflight.headers["allow"].split(",")} <= {"GET", "POST", "HEAD"}
    for answer in (preflight, client.get("/healthz", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_every_answer_says_how_long_it_took(client: TestClient) -> None:
    for path in ("/healthz", "/nowhere", "/recommend?user_id=u1&k=0"):
        assert re.fullmatch(r"total;dur=\d+\.\d", client.get(path).headers["server-timing"])


def test_metrics_are_named_as_prometheus_names_them(client: TestClient) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client.get("/healthz")
    units = {"seconds", "bytes", "ratio", "info", "second"}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert family.name.startswith("evensong_")
        assert family.documentation.endswith(".")
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        if family.type == "counter":
            assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        else:
            assert family.name.rsplit("_", 1)[1] in units, family.name


def test_long_echo_is_cut(client: TestClient) -> None:
    _, error = refusal(client, "POST", "/recommend", json={"user_id": "u" * 100_000})
    assert len(str(error["message"])) < 400


def test_body_past_the_bound_is_refused_whether_its_length_is_stated_or_not(client: TestClient) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    for content in (b" " * (MAX_BODY_BYTES + 1), stream()):
        status, error = refusal(client, "POST", "/recommend", content=content, headers=headers)
        assert (status, error["code"]) == (413, "body_too_large")


def test_unknown_address_and_method_have_the_same_form(client: TestClient) -> None:
    assert refusal(client, "GET", "/nowhere")[0] == 404
    assert refusal(client, "DELETE", "/recommend")[0] == 405


def test_defect_gives_500_without_its_cause_and_logs_it(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect() -> bytes:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(client.app.state.service.metrics, "render", defect)  # type: ignore[attr-defined]
    status, error = refusal(client, "GET", "/metrics")
    assert status == 500
    assert "secret" not in json.dumps(error)
    assert "a secret of ours" in caplog.text
    assert str(error["request_id"]) in caplog.text


def test_sane_request_id_is_kept_and_any_other_replaced(client: TestClient) -> None:
    def answered(asked: str) -> str:
        return client.get("/healthz", headers={"x-request-id": asked}).headers["x-request-id"]

    assert answered("shop-2026:a.b_1") == "shop-2026:a.b_1"
    for insane in ("", "a b", 'x"y', "{}", "x" * 129, "a\tb"):
        assert re.fullmatch(r"[0-9a-f]{32}", answered(insane))
    assert answered("") != answered("")


def test_log_line_names_route_status_and_request_but_no_query(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="evensong.serving.requests"):
        client.get("/recommend?user_id=u1&k=0", headers={"x-request-id": "r1"})
    (line,) = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert line.pop("ms") >= 0
    assert line == {"route": "/recommend", "method": "GET", "status": 422, "request_id": "r1"}


def test_metrics_count_by_route_and_never_by_path(client: TestClient) -> None:
    for path in ("/healthz", "/users/u1/history", "/users/u2/history", "/nowhere/1", "/nowhere/2"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'evensong_requests_total{method="GET",route="/healthz",status="200"} 1.0' in text
    assert 'evensong_requests_total{method="GET",route="/users/{user_id}/history",status="503"} 2.0' in text
    assert "nowhere" not in text
    assert "u1" not in text


def test_openapi_describes_every_address_with_examples_and_error_forms(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/recommend",
        "/healthz",
        "/readyz",
        "/metrics",
        "/users",
        "/users/{user_id}/history",
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (path, method)
            for status in ("422", "500"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (path, method, status)
            ((kind, answer),) = operation["responses"]["200"]["content"].items()
            if kind == "application/json":
                name = answer["schema"]["$ref"].rsplit("/", 1)[1]
                assert document["components"]["schemas"][name]["examples"], name
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["schemas"]["RecommendBody"]["examples"]


def test_openapi_states_the_bounds_of_k(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    (k,) = [each for each in document["paths"]["/recommend"]["get"]["parameters"] if each["name"] == "k"]
    body_k = document["components"]["schemas"]["RecommendBody"]["properties"]["k"]
    for schema in (k["schema"], body_k):
        assert {"type": "integer", "minimum": 1, "maximum": 50} in schema["anyOf"]
        assert schema["default"] == 10


def test_examples_of_the_openapi_document_fit_their_schemas() -> None:
    from evensong.serving import schemas

    for name in vars(schemas):
        model = getattr(schemas, name)
        if isinstance(model, type) and issubclass(model, schemas.Question | schemas.Answer):
            for example in (model.model_config.get("json_schema_extra") or {}).get("examples", []):  # type: ignore[union-attr]
                model.model_validate(example)


def test_examples_of_the_document_itself_fit_its_schemas(client: TestClient) -> None:
    import jsonschema

    document = client.get("/openapi.json").json()
    shapes = document["components"]["schemas"]
    num_examples = 0
    for name, schema in shapes.items():
        for example in schema.get("examples", []):
            # references count from the document's root
            whole = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            jsonschema.validate(example, whole)
            num_examples += 1
    assert num_examples >= 8
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                for example in parameter["schema"].get("examples", []):
                    jsonschema.validate(example, parameter["schema"])


def test_page_is_self_contained_under_a_strict_policy(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for address in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
        assert address.startswith("/"), address
        assert client.get(address).status_code in (200, 503), address
    script = client.get("/page/page.js").text
    assert "innerHTML" not in script
    assert "style=" not in page.text
    assert "onclick" not in page.text
    assert not re.search(r"<script>", page.text)
    assert "http://" not in page.text + script + client.get("/page/style.css").text


def test_page_and_lists_of_users_can_be_switched_off(settings: Settings) -> None:
    off = settings.model_copy(update={"serving": settings.serving.model_copy(update={"page": False})})
    client = TestClient(create_app(off))
    for path in ("/", "/users", "/users/u1/history", "/page/page.js"):
        assert client.get(path).status_code == 404
    assert client.get("/healthz").status_code == 200


def test_request_past_the_bound_of_waiting_ones_is_refused_at_once(client: TestClient) -> None:
    client.app.state.service.num_waiting = 10_000  # type: ignore[attr-defined]
    status, error = refusal(client, "GET", "/users")
    assert (status, error["code"]) == (503, "overloaded")
