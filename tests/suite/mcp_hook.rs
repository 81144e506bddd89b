//! The hook of a policy: a program that decides about each call that no rule denies.

use serde_json::{Value, json};

use crate::mcp_client::{Client, file_of, path};
use crate::support::run;

/// A hook that answers by the call's input, and fails where the input says so.
const HOOK: &str = r#"
import json, sys, time
call = json.load(sys.stdin)
do = call["input"].get("do")
if do == "fail":
    sys.exit("out of order")
if do == "garbage":
    print("yes")
elif do == "array":
    print('["allow"]')
elif do == "twice":
    print('{"decision": "deny", "decision": "allow"}')
elif do == "nested":
    print('{"decision": {"allow": null}}')
elif do == "typo":
    print('{"decison": "allow"}')
elif do == "rewrite":
    print(json.dumps({"input": {"branch": call["input"]["to"], "seen": [call["server"], call["tool"], call["decision"]]}}))
elif do in ("allow", "ask", "deny"):
    print(json.dumps({"decision": do, "reason": "because \u001b[2J it says so"}))
else:
    print("{}")
"#;

struct Hooked {
    hook: tempfile::NamedTempFile,
    policy: tempfile::NamedTempFile,
}

impl Hooked {
    fn new() -> Self {
        let hook = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(hook.path(), HOOK).expect("written");
        let policy = file_of(&json!({
            "deny": ["mad/die", {"tool": "mad/echo", "where": {"/branch": {"equals": "main"}}}],
            "ask": ["mad/odd"],
            "hook": ["python3", path(&hook)],
        }));
        Self { hook, policy }
    }

    async fn client(&self, capabilities: Value) -> Client {
        Client::before("plain", &["--policy", path(&self.policy)], capabilities).await
    }
}

/// What a call of a tool gives, or its error's first line.
async fn call(client: &mut Client, tool: &str, input: Value) -> String {
    let code =
        format!("try {{ text(await tools.mad__{tool}({input})) }} catch (e) {{ text(e.message) }}");
    client.exec(&code).await[0].clone()
}

#[test]
fn a_hook_allows_denies_and_has_no_opinion() {
    run(async {
        let hooked = Hooked::new();
        let mut client = hooked.client(json!({})).await;
        let said = call(&mut client, "echo", json!({"do": "deny"})).await;
        assert!(
            said.contains("mad/echo is denied by the rule hook: deny of the policy"),
            "{said}"
        );
        assert!(
            said.contains("because") && !said.contains('\u{1b}'),
            "{said}"
        );
        let said = call(&mut client, "echo", json!({})).await;
        assert!(said.contains("called"), "{said}");
        // A rule asks, and the hook decides instead of a person.
        let said = call(&mut client, "odd", json!({"do": "allow"})).await;
        assert!(said.contains("hologram"), "{said}");
        let said = call(&mut client, "odd", json!({})).await;
        assert!(said.contains("not approved"), "{said}");
        let said = call(&mut client, "echo", json!({"do": "ask"})).await;
        assert!(
            said.contains("not approved: mad/echo needs a person's approval (rule hook: ask"),
            "{said}"
        );
        client.leave().await;
        assert!(hooked.hook.path().exists());
    });
}

#[test]
fn a_hook_cannot_allow_what_a_rule_denies() {
    run(async {
        let hooked = Hooked::new();
        let mut client = hooked.client(json!({})).await;
        let said = call(&mut client, "die", json!({"do": "allow"})).await;
        assert!(
            said.contains(r#"denied by the rule deny "mad/die""#),
            "{said}"
        );
        let said = call(&mut client, "echo", json!({"do": "rewrite", "to": "main"})).await;
        assert!(said.contains("denied by the rule deny"), "{said}");
        client.leave().await;
    });
}

#[test]
fn a_hook_rewrites_the_input_that_is_sent_and_shown() {
    run(async {
        let hooked = Hooked::new();
        let mut client = hooked.client(json!({"elicitation": {}})).await;
        let said = call(&mut client, "echo", json!({"do": "rewrite", "to": "topic"})).await;
        let expected = r#""with":{"branch":"topic","seen":["mad","echo","allow"]}"#;
        assert!(said.contains(expected), "{said}");
        client.answers = vec![json!({"action": "decline"})];
        call(&mut client, "odd", json!({"do": "rewrite", "to": "topic"})).await;
        let question = client.asked[0].to_string();
        assert!(
            question.contains("topic") && !question.contains("rewrite"),
            "{question}"
        );
        client.leave().await;
    });
}

#[test]
fn a_call_whose_hook_fails_does_not_run() {
    run(async {
        let hooked = Hooked::new();
        let mut client = hooked.client(json!({})).await;
        for (how, why) in [
            ("fail", "exit status: 1: out of order"),
            ("garbage", "prints no JSON"),
            ("typo", "its answer is not"),
            ("array", "prints JSON that is not an object"),
            ("twice", "its answer is not"),
            ("nested", "its answer is not"),
        ] {
            let said = call(&mut client, "echo", json!({"do": how})).await;
            assert!(said.contains("denied by the rule hook: failed"), "{said}");
            assert!(said.contains(why), "{said}");
        }
        client.leave().await;
    });
}

#[test]
fn a_policy_test_asks_the_hook() {
    let hooked = Hooked::new();
    let server = format!("mad={}", crate::mcp_client::mad("plain"));
    let test = |input: Value| {
        let output = std::process::Command::new(crate::support::program())
            .args([
                "mcp",
                "policy",
                "--server",
                &server,
                "--policy",
                path(&hooked.policy),
            ])
            .args(["test", "mad/echo", &input.to_string()])
            .output()
            .expect("run");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        (output.status.code(), said)
    };
    let (code, said) = test(json!({"do": "deny"}));
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("deny: hook: deny, of the policy"),
        "{said}"
    );
    let (code, said) = test(json!({"do": "rewrite", "to": "x"}));
    assert_eq!(code, Some(0));
    assert!(said.contains(r#"sent: {"branch":"x""#), "{said}");
}
