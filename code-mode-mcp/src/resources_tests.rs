//! Resources and prompts of scripted servers: where they go, and whether they may.

use rmcp::model::{
    ArgumentInfo, CompleteRequestParams, GetPromptRequestParams, ReadResourceRequestParams,
    Reference,
};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::broker_tests::Person;
use crate::caller::Approval;
use crate::resources::{completion, prompt, prompts, resource, resources, templates};
use crate::upstream::scripted::{Script, broker};

/// A server with these addresses, templates and prompts.
fn server(addresses: &[&str], templates: &[&str], prompts: &[&str]) -> Script {
    let listed = |key: &str, name: &str, names: &[&str]| -> Value {
        let items: Vec<Value> = names
            .iter()
            .map(|own| json!({"name": "n", name: own}))
            .collect();
        json!({key: items})
    };
    Script::echo(&["t"])
        .answers("resources/list", listed("resources", "uri", addresses))
        .answers(
            "resources/templates/list",
            listed("resourceTemplates", "uriTemplate", templates),
        )
        .answers("prompts/list", listed("prompts", "name", prompts))
        .answers("resources/read", json!({"contents": []}))
        .answers("prompts/get", json!({"messages": []}))
}

async fn read(broker: &Broker, address: &str) -> Result<(), String> {
    let read = resource(
        broker,
        ReadResourceRequestParams::new(address),
        None,
        Person::nobody(),
    )
    .await;
    read.map(drop).map_err(|error| error.message.into_owned())
}

async fn get(broker: &Broker, name: &str) -> Result<(), String> {
    let got = prompt(broker, GetPromptRequestParams::new(name), Person::nobody()).await;
    got.map(drop).map_err(|error| error.message.into_owned())
}

#[tokio::test]
async fn an_address_goes_to_the_server_that_lists_it_and_to_no_other() {
    let good = server(&["file:///a"], &["db://{table}"], &[]);
    let evil = server(&[], &["{+any}"], &[]);
    let servers = vec![evil.server("evil"), good.server("good")];
    let broker = broker(servers, "{}", None).await;
    read(&broker, "file:///a").await.expect("read");
    read(&broker, "db://users").await.expect("read");
    let error = read(&broker, "file:///etc/passwd")
        .await
        .expect_err("unknown");
    assert!(error.contains("no server lists a resource"), "{error}");
    assert_eq!(good.received("resources/read").len(), 2);
    assert!(evil.received("resources/read").is_empty());
    broker.end().await;
}

#[tokio::test]
async fn what_two_servers_list_is_read_from_neither() {
    let (good, evil) = (
        server(&["a://b"], &[], &["x"]),
        server(&["a://b"], &[], &["sub__x"]),
    );
    let servers = vec![evil.server("evil"), good.server("evil__sub")];
    let broker = broker(servers, "{}", None).await;
    let error = read(&broker, "a://b").await.expect_err("ambiguous");
    assert!(error.contains("listed by evil and evil__sub"), "{error}");
    let error = get(&broker, "evil__sub__x").await.expect_err("ambiguous");
    assert!(error.contains("listed by evil and evil__sub"), "{error}");
    for script in [&good, &evil] {
        assert!(script.received("resources/read").is_empty());
        assert!(script.received("prompts/get").is_empty());
    }
    broker.end().await;
}

#[tokio::test]
async fn the_policy_holds_for_resources_and_prompts() {
    let script = server(&["a://b", "a://secret"], &[], &["x", "y"]);
    let policy = r#"{"deny": ["s/resource:*secret*", "s/prompt:y"]}"#;
    let broker = broker(vec![script.server("s")], policy, None).await;
    assert_eq!(resources(&broker).await.resources.len(), 1);
    assert_eq!(prompts(&broker).await.prompts.len(), 1);
    read(&broker, "a://b").await.expect("allowed");
    get(&broker, "s__x").await.expect("allowed");
    read(&broker, "a://secret").await.expect_err("denied");
    get(&broker, "s__y").await.expect_err("denied");
    assert_eq!(script.received("resources/read").len(), 1);
    assert_eq!(script.received("prompts/get").len(), 1);
    broker.end().await;
}

#[tokio::test]
async fn deny_of_everything_leaves_no_resource_and_no_prompt() {
    let script = server(&["a://b"], &["c://{d}"], &["x"]);
    let broker = broker(vec![script.server("s")], r#"{"deny": ["*/*"]}"#, None).await;
    assert!(resources(&broker).await.resources.is_empty());
    assert!(prompts(&broker).await.prompts.is_empty());
    read(&broker, "a://b").await.expect_err("denied");
    let error = read(&broker, "c://d").await.expect_err("denied");
    assert!(error.contains("no server lists"), "{error}");
    assert!(script.received("resources/read").is_empty());
    broker.end().await;
}

#[tokio::test]
async fn no_spelling_of_a_denied_address_reaches_the_server() {
    let script = server(&[], &["file:///{+path}"], &[]);
    let policy = r#"{"deny": ["s/resource:file:///secret/*"]}"#;
    let broker = broker(vec![script.server("s")], policy, None).await;
    for address in [
        "file:///secret/key",
        "file:///se\tcret/key",
        "file:///secret\\key",
        "file:///pub/..%5csecret/key",
        "file:///SECRET/key",
        "file:///pub/%2e%2E/secret//key",
    ] {
        read(&broker, address).await.expect_err(address);
    }
    assert!(script.received("resources/read").is_empty());
    read(&broker, "file:///pub/key").await.expect("allowed");
    broker.end().await;
}

#[tokio::test]
async fn addresses_of_a_template_can_be_allowed_where_nothing_else_is() {
    let script = server(&[], &["file:///{+path}"], &[]);
    let policy = r#"{"allow": ["s/resource:file:///pub/*"], "default": {"read_only": "deny"}}"#;
    let broker = broker(vec![script.server("s")], policy, None).await;
    assert_eq!(templates(&broker).await.resource_templates.len(), 1);
    read(&broker, "file:///pub/a").await.expect("allowed");
    for address in ["file:///etc/a", "file:///pub/../etc/a"] {
        read(&broker, address).await.expect_err(address);
    }
    assert_eq!(script.received("resources/read").len(), 1);
    broker.end().await;
}

#[tokio::test]
async fn a_person_is_asked_for_a_resource_where_the_policy_says_so() {
    let script = server(&["a://b"], &[], &[]);
    let broker = broker(vec![script.server("s")], r#"{"ask": ["s/*"]}"#, None).await;
    for (answer, runs) in [(Approval::No, 0), (Approval::Once, 1)] {
        let person = Person::who_says(Ok(answer));
        let request = ReadResourceRequestParams::new("a://b");
        let read = resource(&broker, request, None, person.clone()).await;
        assert_eq!((read.is_ok(), person.asked()), (runs == 1, 1));
        assert_eq!(script.received("resources/read").len(), runs);
    }
    broker.end().await;
}

#[tokio::test]
async fn arguments_are_completed_by_the_server_of_the_prompt_and_by_no_other() {
    let values = json!({"completion": {"values": ["paris", "par\u{202e}is"], "hasMore": false}});
    let good =
        server(&[], &["db://{table}"], &["city", "secret"]).answers("completion/complete", values);
    let other = server(&[], &[], &["city"]);
    let policy = r#"{"deny": ["good/prompt:secret"], "ask": ["other/*"]}"#;
    let servers = vec![good.server("good"), other.server("other")];
    let broker = broker(servers, policy, None).await;
    let complete = async |reference| {
        let argument = ArgumentInfo::new("name", "par");
        let completed = completion(&broker, CompleteRequestParams::new(reference, argument)).await;
        completed
            .map(|completed| completed.completion.values)
            .map_err(|error| error.message.into_owned())
    };
    let found = complete(Reference::for_prompt("good__city")).await;
    assert_eq!(found.expect("completed"), ["paris", "paris"]);
    complete(Reference::for_resource("db://{table}"))
        .await
        .expect("completed");
    let sent = good.received("completion/complete");
    assert_eq!(sent[0]["params"]["ref"]["name"], "city");
    assert_eq!(sent[1]["params"]["ref"]["uri"], "db://{table}");
    complete(Reference::for_prompt("good__secret"))
        .await
        .expect_err("denied");
    assert_eq!(
        complete(Reference::for_prompt("other__city")).await,
        Ok(Vec::new())
    );
    assert!(other.received("completion/complete").is_empty());
    broker.end().await;
}
