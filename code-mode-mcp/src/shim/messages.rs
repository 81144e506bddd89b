//! What the relay knows of the messages that passed, and what it makes of them.
//!
//! A client talks to one server, and must not notice that a gateway has ended and another has begun.
//! So the relay repeats the client's greeting to the new gateway, answers the requests that were lost
//! with the old one, and numbers the gateways' own requests itself: an answer that a person gives late
//! must not be taken for the answer to a question of the next gateway.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The answer to a request whose gateway has ended.
const LOST: &str = "the gateway of code-mode mcp has ended: what this request asked for may have run. The next request starts the gateway again";

/// How often a client's request to begin is repeated to another gateway.
const MAX_UNANSWERED: u32 = 3;

/// The parts of a message that say what it is.
#[derive(Deserialize)]
struct Head<'a> {
    id: Option<Value>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
}

/// What becomes of a message of the client.
pub(super) enum FromClient<'a> {
    /// The gateway gets this.
    Send(Cow<'a, [u8]>),
    /// Nobody gets it.
    Drop,
    /// It needs a gateway, and none is connected.
    NeedsGateway,
}

/// A client's conversation with its gateways.
#[derive(Default)]
pub(super) struct Conversation {
    /// The number of the gateway that is connected.
    gateway: Option<u64>,
    gateways: u64,
    /// The client's request to begin, once it was answered; with its identifier.
    initialize: Option<(String, Vec<u8>)>,
    /// The same before it was answered.
    initializing: Option<(String, Vec<u8>)>,
    /// The client's notification after that.
    initialized: Option<Vec<u8>>,
    /// The client's last request for a level of logging.
    level: Option<(String, Vec<u8>)>,
    /// Requests that were repeated to a new gateway: the client had its answers before.
    repeated: HashSet<String>,
    /// The client's requests without an answer, by their identifiers as JSON.
    requests: HashMap<String, Value>,
    /// The gateway's requests without an answer: its identifiers, by those that the client sees.
    questions: HashMap<u64, Value>,
    asked: u64,
    /// Gateways that ended before they had answered the client's request to begin.
    unanswered: u32,
    /// The client has left and reads nothing further.
    has_left: bool,
}

impl Conversation {
    /// A gateway is connected. Returns its number, and what it must hear before anything else.
    pub(super) fn gateway_connected(&mut self) -> (u64, Vec<Vec<u8>>) {
        self.gateways += 1;
        self.gateway = Some(self.gateways);
        let mut lines = Vec::new();
        if let Some((id, line)) = &self.initialize {
            self.repeated.insert(id.clone());
            lines.push(line.clone());
            lines.extend(self.initialized.clone());
            if let Some((id, line)) = &self.level {
                self.repeated.insert(id.clone());
                lines.push(line.clone());
            }
        }
        (self.gateways, lines)
    }

    /// A gateway has ended. Returns the messages that the client gets about it.
    pub(super) fn gateway_ended(&mut self, number: u64) -> Vec<Vec<u8>> {
        if self.gateway != Some(number) {
            return Vec::new();
        }
        self.gateway = None;
        self.repeated.clear();
        if self.has_left {
            return Vec::new();
        }
        // It has no effects, so the next gateway gets it, for a few times.
        if let Some((id, _)) = &self.initializing {
            self.unanswered += 1;
            match self.unanswered <= MAX_UNANSWERED {
                true => drop(self.requests.remove(id)),
                false => self.initializing = None,
            }
        }
        let questions = std::mem::take(&mut self.questions);
        let questions = questions.keys().map(|id| {
            json!({
                "jsonrpc": "2.0",
                "method": "notifications/cancelled",
                "params": {"requestId": id, "reason": "the gateway has ended"},
            })
        });
        let requests = std::mem::take(&mut self.requests);
        let requests = requests.into_values().map(|id| refusal(&id, LOST));
        questions
            .chain(requests)
            .map(|value| line(&value))
            .collect()
    }

    /// The client's request to begin, where the gateway that had it has ended without an answer.
    pub(super) fn unanswered_greeting(&self) -> Option<Vec<u8>> {
        let (_, line) = self.initializing.as_ref()?;
        self.gateway.is_none().then(|| line.clone())
    }

    /// The client has left: it gets no answers but those of its gateway.
    pub(super) fn leave(&mut self) {
        self.has_left = true;
    }

    /// A request has not reached its gateway. False where it was answered already, and for other messages.
    pub(super) fn take_back(&mut self, message: &[u8]) -> bool {
        let head = serde_json::from_slice::<Head<'_>>(message).ok();
        let id = head.and_then(|head| head.id.filter(|_| head.method.is_some()));
        id.is_some_and(|id| self.requests.remove(&id.to_string()).is_some())
    }

    /// A message of the client.
    pub(super) fn client_says<'a>(&mut self, message: &'a [u8]) -> FromClient<'a> {
        let Ok(head) = serde_json::from_slice::<Head<'_>>(message) else {
            // The gateway answers with the error.
            return self.send(message);
        };
        match (head.method, head.id) {
            (Some(method), Some(id)) => {
                if self.gateway.is_none() {
                    return FromClient::NeedsGateway;
                }
                let key = id.to_string();
                match &*method {
                    "initialize" => self.initializing = Some((key.clone(), message.to_vec())),
                    "logging/setLevel" => self.level = Some((key.clone(), message.to_vec())),
                    _ => {}
                }
                self.requests.insert(key, id);
                FromClient::Send(message.into())
            }
            (Some(method), None) => {
                match &*method {
                    "notifications/initialized" => self.initialized = Some(message.to_vec()),
                    "notifications/cancelled" => {
                        if let Some(id) = cancelled(message) {
                            self.requests.remove(&id.to_string());
                        }
                    }
                    _ => {}
                }
                self.send(message)
            }
            (None, Some(id)) => {
                let seen = id.as_u64().unwrap_or_default();
                let own = self.questions.get(&seen);
                match own.and_then(|own| with_id(message, own)) {
                    Some(answer) if self.gateway.is_some() => {
                        self.questions.remove(&seen);
                        FromClient::Send(answer.into())
                    }
                    _ => FromClient::Drop,
                }
            }
            (None, None) => self.send(message),
        }
    }

    fn send<'a>(&self, message: &'a [u8]) -> FromClient<'a> {
        match self.gateway {
            Some(_) => FromClient::Send(message.into()),
            None => FromClient::Drop,
        }
    }

    /// A message of a gateway: what the client gets of it.
    pub(super) fn gateway_says<'a>(&mut self, message: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let Ok(head) = serde_json::from_slice::<Head<'_>>(message) else {
            return Some(message.into());
        };
        match (head.method, head.id) {
            (None, Some(id)) => {
                let key = id.to_string();
                if self.repeated.remove(&key) {
                    return None;
                }
                if self.initializing.as_ref().is_some_and(|(id, _)| *id == key) {
                    self.initialize = self.initializing.take();
                }
                self.requests.remove(&key);
                Some(message.into())
            }
            (Some(_), Some(id)) => {
                self.asked += 1;
                self.questions.insert(self.asked, id);
                with_id(message, &Value::from(self.asked)).map(Cow::from)
            }
            (Some(method), None) if method == "notifications/cancelled" => {
                let own = cancelled(message)?;
                let mut questions = self.questions.iter();
                let seen = *questions.find(|(_, id)| **id == own)?.0;
                self.questions.remove(&seen);
                let mut message: Map<String, Value> = serde_json::from_slice(message).ok()?;
                message["params"]["requestId"] = Value::from(seen);
                Some(line(&Value::Object(message)).into())
            }
            _ => Some(message.into()),
        }
    }
}

/// The answer to a client's request where no gateway can be had; nothing for other messages.
pub(super) fn refused(message: &[u8], why: &str) -> Option<Vec<u8>> {
    let head: Head<'_> = serde_json::from_slice(message).ok()?;
    head.method?;
    Some(line(&refusal(&head.id?, why)))
}

fn refusal(id: &Value, why: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32603, "message": why}})
}

/// The request that a notification says is cancelled.
fn cancelled(message: &[u8]) -> Option<Value> {
    let message: Value = serde_json::from_slice(message).ok()?;
    message.get("params")?.get("requestId").cloned()
}

fn with_id(message: &[u8], id: &Value) -> Option<Vec<u8>> {
    let mut message: Map<String, Value> = serde_json::from_slice(message).ok()?;
    message.insert("id".to_owned(), id.clone());
    Some(line(&Value::Object(message)))
}

fn line(message: &Value) -> Vec<u8> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIALIZE: &[u8] = br#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}"#;
    const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

    fn value(line: &[u8]) -> Value {
        serde_json::from_slice(line).expect("JSON")
    }

    fn sent(from: FromClient<'_>) -> Value {
        match from {
            FromClient::Send(line) => value(&line),
            FromClient::Drop | FromClient::NeedsGateway => panic!("it is not sent"),
        }
    }

    fn begun() -> Conversation {
        let mut conversation = Conversation::default();
        let (_, lines) = conversation.gateway_connected();
        assert!(lines.is_empty());
        sent(conversation.client_says(INITIALIZE));
        let answer = br#"{"jsonrpc":"2.0","id":0,"result":{}}"#;
        assert!(conversation.gateway_says(answer).is_some());
        sent(conversation.client_says(INITIALIZED));
        conversation
    }

    #[test]
    fn a_new_gateway_hears_the_greeting_and_the_client_no_second_answer() {
        let mut conversation = begun();
        assert!(conversation.gateway_ended(1).is_empty());
        assert_eq!(
            conversation.gateway_connected(),
            (2, vec![INITIALIZE.to_vec(), INITIALIZED.to_vec()])
        );
        let answer = br#"{"jsonrpc":"2.0","id":0,"result":{}}"#;
        assert!(conversation.gateway_says(answer).is_none());
        assert!(conversation.gateway_says(answer).is_some());
    }

    #[test]
    fn requests_that_were_lost_are_answered_once() {
        let mut conversation = begun();
        sent(conversation.client_says(br#"{"id":1,"method":"tools/call"}"#));
        sent(conversation.client_says(br#"{"id":"b","method":"tools/call"}"#));
        sent(conversation.client_says(br#"{"id":3,"method":"tools/call"}"#));
        let cancel = br#"{"method":"notifications/cancelled","params":{"requestId":3}}"#;
        sent(conversation.client_says(cancel));
        assert!(
            conversation
                .gateway_says(br#"{"id":1,"result":{}}"#)
                .is_some()
        );
        let told = conversation.gateway_ended(1);
        assert_eq!(told.len(), 1);
        assert_eq!(value(&told[0])["id"], "b");
        let why = value(&told[0])["error"]["message"].to_string();
        assert!(why.contains("may have run"), "{why}");
        assert!(conversation.gateway_ended(1).is_empty());
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_answer_to_another_question() {
        let mut conversation = begun();
        let question = br#"{"id":7,"method":"elicitation/create","params":{}}"#;
        let seen = conversation.gateway_says(question).expect("shown");
        assert_eq!(value(&seen)["id"], 1);
        let told = conversation.gateway_ended(1);
        assert_eq!(value(&told[0])["params"]["requestId"], 1);
        conversation.gateway_connected();
        let seen = conversation.gateway_says(question).expect("shown");
        assert_eq!(value(&seen)["id"], 2);
        let late = conversation.client_says(br#"{"id":1,"result":{"action":"accept"}}"#);
        assert!(matches!(late, FromClient::Drop));
        let answer = sent(conversation.client_says(br#"{"id":2,"result":{"action":"decline"}}"#));
        assert_eq!(answer["id"], 7);
    }

    #[test]
    fn a_question_that_the_gateway_takes_back_is_the_one_that_the_client_saw() {
        let mut conversation = begun();
        conversation.gateway_says(br#"{"id":7,"method":"elicitation/create"}"#);
        let cancel = br#"{"method":"notifications/cancelled","params":{"requestId":7}}"#;
        let seen = conversation.gateway_says(cancel).expect("shown");
        assert_eq!(value(&seen)["params"]["requestId"], 1);
        assert!(conversation.gateway_says(cancel).is_none());
    }

    #[test]
    fn a_greeting_without_an_answer_goes_to_the_next_gateway_a_few_times() {
        let mut conversation = Conversation::default();
        for number in 1..=u64::from(MAX_UNANSWERED) {
            conversation.gateway_connected();
            sent(conversation.client_says(INITIALIZE));
            assert!(conversation.gateway_ended(number).is_empty());
            assert_eq!(
                conversation.unanswered_greeting(),
                Some(INITIALIZE.to_vec())
            );
        }
        conversation.gateway_connected();
        sent(conversation.client_says(INITIALIZE));
        assert_eq!(conversation.gateway_ended(4).len(), 1);
        assert_eq!(conversation.unanswered_greeting(), None);
    }

    #[test]
    fn a_client_that_has_left_gets_no_answers_of_the_relay() {
        let mut conversation = begun();
        sent(conversation.client_says(br#"{"id":1,"method":"tools/call"}"#));
        conversation.leave();
        assert!(conversation.gateway_ended(1).is_empty());
    }

    #[test]
    fn a_request_that_did_not_reach_its_gateway_is_not_lost_with_it() {
        let mut conversation = begun();
        let request = br#"{"id":1,"method":"tools/call"}"#;
        sent(conversation.client_says(request));
        assert!(conversation.take_back(request));
        assert!(!conversation.take_back(request));
        assert!(conversation.gateway_ended(1).is_empty());
    }

    #[test]
    fn only_a_request_starts_a_gateway() {
        let mut conversation = begun();
        conversation.gateway_ended(1);
        let request = conversation.client_says(br#"{"id":4,"method":"ping"}"#);
        assert!(matches!(request, FromClient::NeedsGateway));
        let news = conversation.client_says(br#"{"method":"notifications/roots/list_changed"}"#);
        assert!(matches!(news, FromClient::Drop));
    }
}
