"""Models, health, metrics, version, tokens and the OpenAPI document over HTTP."""

from prometheus_client.parser import text_string_to_metric_families

from nano3 import __version__


def samples(client):
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_the_models_list_has_the_one_model(client, tokenizer):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "small"
    assert model["max_model_len"] == 4096
    assert model["ids_limit"] == tokenizer.vocab_size
    assert (model["base_model"], model["opening"]) == (False, "")
    assert client.get("/v1/models/small").json() == model
    assert client.get("/v1/models/other/one").json()["error"]["code"] == "model_not_found"


def test_health_and_version(client):
    for path in ("/health", "/health/live", "/health/ready"):
        assert client.get(path).json() == {"status": "ok"}
    assert client.get("/version").json() == {"version": __version__}


def test_metrics_count_what_was_done(client):
    before = samples(client)
    body = {"prompt": "The quick brown fox", "max_tokens": 7, "ignore_eos": True}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert client.post("/v1/completions", json={"prompt": "a", "n": 0}).status_code == 400
    assert client.get("/v1/models/nothing").status_code == 404
    client.get("/some/path/that/is/none")
    after = samples(client)

    def grown(name, **labels):
        key = (name, *sorted(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("nano3_output_tokens_total") == 7
    assert grown("nano3_prompt_tokens_total") > 0
    assert grown("nano3_http_requests_total", method="POST", route="/v1/completions", status="200") == 1
    assert grown("nano3_http_requests_total", method="POST", route="/v1/completions", status="400") == 1
    assert grown("nano3_http_requests_total", method="GET", route="/v1/models/{name:path}", status="404") == 1
    assert grown("nano3_http_requests_total", method="GET", route="other", status="404") == 1
    assert grown("nano3_time_to_first_token_seconds_count") == 1
    assert grown("nano3_inter_token_latency_seconds_count") == 6
    assert grown("nano3_request_latency_seconds_count") == 1
    assert grown("nano3_request_latency_seconds_bucket", le="+Inf") == 1
    assert grown("nano3_finished_outputs_total", reason="length") == 1
    assert after[("nano3_ready",)] == 1
    for name in ("queued", "running", "waiting", "slots_used", "slots", "pages_used", "pages"):
        assert after[(f"nano3_{name}",)] >= 0
    for name in ("cached_tokens", "cache_queries", "cache_hits", "preemptions", "aborted_requests"):
        assert (f"nano3_{name}_total",) in after


def test_tokenize_and_detokenize(server, client):
    prompt = "The quick <|im_end|> fox"
    answer = client.post("/tokenize", json={"prompt": prompt, "return_token_strs": True}).json()
    assert answer["tokens"] == server.tokenizer.encode(prompt, special=True)
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 4096
    assert "".join(answer["token_strs"]) == prompt
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": prompt}


def test_tokenize_counts_a_conversation_as_the_chat_does(client):
    body = {"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": False}
    count = client.post("/tokenize", json=body).json()["count"]
    usage = client.post("/v1/chat/completions", json=body | {"max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == count
    closed = client.post("/tokenize", json=body | {"add_generation_prompt": False}).json()["count"]
    assert closed < count


def test_wrong_tokens_are_400(client):
    for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": [{"role": "user"}]}),
                       ("/detokenize", {"tokens": [10_000_000]}), ("/detokenize", {"tokens": ["a"]})):  # fmt: skip
        response = client.post(path, json=body)
        assert response.status_code == 400
        assert response.json()["error"]["message"]


def test_the_openapi_document_tells_of_every_error_in_one_form(client):
    document = client.get("/openapi.json").json()
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} == set(chat)
    assert "422" not in str(document["paths"])
    assert "text/event-stream" in chat["200"]["content"]


def test_the_page_may_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    types = {
        "chat.js": "text/javascript", "style.css": "text/css", "continue.html": "text/html",
        "icon.svg": "image/svg+xml", "vendor/marked/LICENSE": "text/plain",
        "vendor/katex/fonts/KaTeX_Main-Regular.woff2": "font/woff2",
    }  # fmt: skip
    for name, media_type in types.items():
        answer = client.get(f"/{name}")
        assert answer.headers["content-type"].startswith(media_type), name
        assert answer.headers["content-security-policy"] == policy, name
    for wrong in ("..%2fapp.py", "vendor/..%2f..%2fapp.py", "vendor", "vendor/katex/"):
        assert client.get(f"/{wrong}").status_code == 404, wrong


def test_a_file_that_the_browser_has_is_not_sent_again(client):
    first = client.get("/vendor/katex/katex.min.js")
    again = client.get("/vendor/katex/katex.min.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert client.get("/chat.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_a_slash_at_the_end_is_no_other_address(client):
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert client.get("/v1/models/small/").json() == client.get("/v1/models/small").json()


def test_head_answers_as_get_without_the_body(client):
    for path in ("/", "/health", "/v1/models", "/metrics", "/nothing", "/v1/chat/completions"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
