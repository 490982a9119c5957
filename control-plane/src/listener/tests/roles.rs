//! Who may what (DESIGN §2): every path of the description and every RPC that reflection shows, for everyone there is.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use prost::Message;
use prost::bytes::{Buf, BufMut};
use reflection::server_reflection_request::MessageRequest;
use reflection::server_reflection_response::MessageResponse;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

use super::*;

/// Everyone there is, and the token each sends. Nobody of them is an operator for being on this machine.
const WHO: [(&str, Option<&str>); 7] = [
    ("nobody", None),
    ("a stranger", Some("unknown")),
    ("the service's registrar", Some("grant")),
    ("a registrar by role", Some("registrar")),
    ("a reader", Some("reader")),
    ("a data plane", Some("plane")),
    ("an operator", Some("operator")),
];

/// What each of them gets, in the order of [`WHO`]: the code of the refusal, or nothing.
type Row = [&'static str; 7];

const OPEN: Row = [""; 7];
const REGISTERS: Row = [NOT_ITS, NOT_ITS, "", NOT_ITS, NOT_ITS, NOT_ITS, ""];
const ITS_OWN: Row = [WHO_ARE_YOU, WHO_ARE_YOU, "", NO, NO, NO, ""];
const READS: Row = [WHO_ARE_YOU, WHO_ARE_YOU, NO, NO, "", NO, ""];
const FOLLOWS: Row = [WHO_ARE_YOU, WHO_ARE_YOU, NO, NO, NO, "", ""];
const OPERATES: Row = [WHO_ARE_YOU, WHO_ARE_YOU, NO, NO, NO, NO, ""];

const WHO_ARE_YOU: &str = "UNAUTHORIZED";
const NO: &str = "FORBIDDEN";
const NOT_ITS: &str = "REGISTRATION_REFUSED";

/// Every path: its method, the row, and what is asked. `{}` is the service.
const PATHS: &[(&str, &str, Row, &str)] = &[
    ("post", "/internal/register-service", REGISTERS, "/internal/register-service"),
    ("get", "/internal/services", READS, "/internal/services"),
    ("get", "/internal/services/{service}", READS, "/internal/services/{}"),
    ("delete", "/internal/services/{service}", OPERATES, "/internal/services/{}"),
    ("post", "/internal/services/{service}/probe", OPERATES, "/internal/services/{}/probe"),
    ("post", "/internal/services/{service}/drain", OPERATES, "/internal/services/{}/drain?seconds=0"),
    ("post", "/internal/services/{service}/undrain", OPERATES, "/internal/services/{}/undrain"),
    ("delete", "/internal/services/{service}/instances/{instance}", ITS_OWN, "/internal/services/{}/instances/default"),
    ("post", "/internal/services/{service}/instances/{instance}/probe", OPERATES, "/internal/services/{}/instances/default/probe"),
    ("post", "/internal/services/{service}/instances/{instance}/drain", ITS_OWN, "/internal/services/{}/instances/default/drain?seconds=0"),
    ("post", "/internal/services/{service}/instances/{instance}/undrain", OPERATES, "/internal/services/{}/instances/default/undrain"),
    ("get", "/internal/routes", READS, "/internal/routes"),
    ("get", "/internal/explain", READS, "/internal/explain?method=GET&path=/a"),
    ("get", "/internal/events", READS, "/internal/events?since=0"),
    ("post", "/internal/reload", OPERATES, "/internal/reload"),
    ("get", "/internal/openapi.json", READS, "/internal/openapi.json"),
    ("get", "/health", OPEN, "/health"),
    ("get", "/health/live", OPEN, "/health/live"),
    ("get", "/health/ready", OPEN, "/health/ready"),
    ("get", "/metrics", READS, "/metrics"),
];

/// Every RPC: its path, and for each thing that can be asked of it the row and the message.
fn rpcs(service: &str) -> BTreeMap<&'static str, Vec<(Row, Vec<u8>)>> {
    let (service, instance) = (service.to_owned(), "default".to_owned());
    let register = registration(&service);
    let deregister = |instance| v1::DeregisterRequest { service: service.clone(), instance, ..v1::DeregisterRequest::default() };
    let drain =
        |instance, undo| v1::DrainRequest { service: service.clone(), instance, seconds: Some(0), undo, ..v1::DrainRequest::default() };
    let session = v1::SessionRequest { message: Some(v1::session_request::Message::Register(register.clone())) };
    let explain = v1::ExplainRequest { method: "GET".into(), path: "/a".into(), ..v1::ExplainRequest::default() };
    let events = v1::WatchEventsRequest { since: "0".into(), ..v1::WatchEventsRequest::default() };
    let list = || ask(MessageRequest::ListServices(String::new())).encode_to_vec();
    let health = || HealthCheckRequest { service: String::new() }.encode_to_vec();
    BTreeMap::from([
        ("furt.v1.RegistryService/Register", vec![(REGISTERS, register.encode_to_vec())]),
        (
            "furt.v1.RegistryService/Deregister",
            vec![(ITS_OWN, deregister(instance.clone()).encode_to_vec()), (OPERATES, deregister(String::new()).encode_to_vec())],
        ),
        (
            "furt.v1.RegistryService/Drain",
            vec![
                (ITS_OWN, drain(instance.clone(), false).encode_to_vec()),
                (OPERATES, drain(String::new(), false).encode_to_vec()),
                (OPERATES, drain(instance.clone(), true).encode_to_vec()),
                (OPERATES, drain(String::new(), true).encode_to_vec()),
            ],
        ),
        (
            "furt.v1.RegistryService/Probe",
            vec![(OPERATES, v1::ProbeRequest { service: service.clone(), instance: String::new() }.encode_to_vec())],
        ),
        ("furt.v1.RegistryService/GetService", vec![(READS, v1::GetServiceRequest { service: service.clone() }.encode_to_vec())]),
        ("furt.v1.RegistryService/ListServices", vec![(READS, Vec::new())]),
        ("furt.v1.RegistryService/ListRoutes", vec![(READS, Vec::new())]),
        ("furt.v1.RegistryService/Explain", vec![(READS, explain.encode_to_vec())]),
        ("furt.v1.RegistryService/WatchEvents", vec![(READS, events.encode_to_vec())]),
        ("furt.v1.RegistryService/Session", vec![(REGISTERS, session.encode_to_vec())]),
        ("furt.v1.SnapshotService/Get", vec![(FOLLOWS, Vec::new())]),
        ("furt.v1.SnapshotService/Watch", vec![(FOLLOWS, Vec::new())]),
        ("grpc.health.v1.Health/Check", vec![(OPEN, health())]),
        ("grpc.health.v1.Health/Watch", vec![(OPEN, health())]),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", vec![(OPEN, list())]),
        ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", vec![(OPEN, list())]),
    ])
}

fn ask(message: MessageRequest) -> reflection::ServerReflectionRequest {
    reflection::ServerReflectionRequest { host: String::new(), message_request: Some(message) }
}

fn registration(service: &str) -> v1::RegisterRequest {
    let route = v1::Route { method: "GET".into(), path: format!("/{service}"), ..v1::Route::default() };
    v1::RegisterRequest {
        service: service.into(),
        url: "http://127.0.0.1:7812".into(),
        routes: vec![route],
        ..v1::RegisterRequest::default()
    }
}

/// furt with two services that may register, `sealed` with a token and `free` without.
async fn world() -> World {
    let digest = |token: &str| Sha256::digest(token).into();
    let roles = [Role::Registrar, Role::Reader, Role::DataPlane, Role::Operator];
    let tokens = ["registrar", "reader", "plane", "operator"].into_iter().zip(roles);
    let base = config();
    let granted = base.grants.iter().take(1).cloned().collect::<Vec<_>>();
    let grant =
        |service: &str, tokens: Vec<crate::config::Digest>| Grant { service: Some(service.parse().unwrap()), tokens, ..granted[0].clone() };
    let config = Config {
        loopback_is_operator: false,
        registration_rate: "100000/s".parse().unwrap(),
        grants: [grant("sealed", vec![digest("grant")]), grant("free", Vec::new())].into(),
        tokens: tokens.map(|(name, role)| Token { name: name.into(), role, digests: vec![digest(name)] }).collect(),
        ..base
    };
    World::with(config, Limits::default()).await
}

impl World {
    /// Both services are there, whatever was done to them.
    async fn registered(&self) {
        let operator = Peer::new(Some(self.address.ip()), Some(b"Bearer operator"));
        for service in ["sealed", "free"] {
            self.registry.register(&operator, registration(service), Vec::new()).await.unwrap();
        }
    }

    /// What a path answers: its status, and the code when it is a refusal. Of events the head is enough.
    async fn asked(&self, method: &str, target: &str, token: Option<&str>, body: &str) -> (u16, String) {
        let authorization = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{authorization}\r\n"
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all((head + body).as_bytes()).await.unwrap();
        let mut text = String::new();
        let mut buffer = [0; 16 << 10];
        while !text.contains("text/event-stream") {
            match stream.read(&mut buffer).await.unwrap() {
                0 => break,
                count => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
            }
        }
        let answer = Answer(text);
        let body: Value = serde_json::from_str(answer.body()).unwrap_or_default();
        (answer.status(), body["code"].as_str().unwrap_or_default().to_owned())
    }
}

#[tokio::test]
async fn every_path_is_open_to_whom_the_table_says_and_to_nobody_else() {
    let furt = world().await;
    let operator = "Authorization: Bearer operator";
    let described: Value = serde_json::from_str(furt.send("GET /internal/openapi.json", &[operator], "").await.body()).unwrap();
    let mut cells = 0;
    for (path, methods) in described["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let row = PATHS.iter().find(|(known, known_path, ..)| known == method && known_path == path);
            let Some((.., row, target)) = row else { panic!("{method} {path} is missing from the table") };
            for service in ["sealed", "free"] {
                let row = of(service, *row);
                for ((who, token), expected) in WHO.into_iter().zip(row) {
                    furt.registered().await;
                    let body = if path.ends_with("register-service") { json_registration(service) } else { String::new() };
                    let (status, code) = furt.asked(&method.to_uppercase(), &target.replace("{}", service), token, &body).await;
                    let good = if path == "/health/ready" { 503 } else { 200 };
                    let expected_status = match expected {
                        "" => good,
                        WHO_ARE_YOU => 401,
                        _ => 403,
                    };
                    assert_eq!((status, &*code), (expected_status, expected), "{who}: {method} {path} of {service}");
                    cells += 1;
                }
            }
        }
    }
    assert_eq!(cells, PATHS.len() * 2 * WHO.len(), "the table knows a path that is not described");
}

/// What belongs to a service is everyone's when its grant names no token.
fn of(service: &str, row: Row) -> Row {
    if service == "free" && (row == REGISTERS || row == ITS_OWN) { OPEN } else { row }
}

fn json_registration(service: &str) -> String {
    let request = registration(service);
    let route = &request.routes[0];
    format!(r#"{{"service":"{service}","url":"{}","routes":[{{"method":"{}","path":"{}"}}]}}"#, request.url, route.method, route.path)
}

#[tokio::test]
async fn every_rpc_is_open_to_whom_the_table_says_and_to_nobody_else() {
    let furt = world().await;
    let channel = furt.channel().await;
    let shown = shown_rpcs(channel.clone()).await;
    assert!(shown.len() > 10, "{shown:?}");
    for service in ["sealed", "free"] {
        let mut table = rpcs(service);
        for rpc in &shown {
            let asked = table.remove(rpc.as_str()).unwrap_or_else(|| panic!("{rpc} is missing from the table"));
            for (number, (row, message)) in asked.into_iter().enumerate() {
                for ((who, token), expected) in WHO.into_iter().zip(of(service, row)) {
                    furt.registered().await;
                    let answer = first_answer(&channel, rpc, token, message.clone()).await;
                    let what = format!("{who}: {rpc} ({number}) of {service}");
                    let refused = match answer {
                        Ok(()) => String::new(),
                        Err(status) => {
                            let code = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
                            let expected_code =
                                if code == WHO_ARE_YOU { tonic::Code::Unauthenticated } else { tonic::Code::PermissionDenied };
                            assert_eq!(status.code(), expected_code, "{what}: {status:?}");
                            code
                        }
                    };
                    assert_eq!(refused, expected, "{what}");
                }
            }
        }
        let left: Vec<_> = table.keys().collect();
        assert!(left.is_empty(), "the table knows what reflection does not show: {left:?}");
    }
}

/// Every RPC as `package.Service/Method`, by both versions of reflection.
async fn shown_rpcs(channel: Channel) -> Vec<String> {
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let mut reply = async |message| {
        let mut answers = client.server_reflection_info(tokio_stream::once(ask(message))).await.unwrap().into_inner();
        answers.message().await.unwrap().and_then(|answer| answer.message_response)
    };
    let Some(MessageResponse::ListServicesResponse(services)) = reply(MessageRequest::ListServices(String::new())).await else {
        panic!("services are not listed")
    };
    let mut names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    // Each version of reflection shows itself only.
    names.push("grpc.reflection.v1alpha.ServerReflection".into());
    names.sort_unstable();
    names.dedup();
    let mut rpcs = Vec::new();
    for name in names {
        let (package, service) = name.rsplit_once('.').unwrap();
        if package == "grpc.reflection.v1alpha" {
            rpcs.push(format!("{name}/ServerReflectionInfo"));
            continue;
        }
        let Some(MessageResponse::FileDescriptorResponse(files)) = reply(MessageRequest::FileContainingSymbol(name.clone())).await else {
            panic!("{name} is not described")
        };
        let files = files.file_descriptor_proto.iter().map(|file| prost_types::FileDescriptorProto::decode(&**file).unwrap());
        let file = files.into_iter().find(|file| file.package() == package).unwrap();
        let found = file.service.iter().find(|found| found.name() == service).unwrap();
        rpcs.extend(found.method.iter().map(|method| format!("{name}/{}", method.name())));
    }
    rpcs
}

/// Whether an RPC answers one message with one, or with what status.
async fn first_answer(channel: &Channel, rpc: &str, token: Option<&str>, message: Vec<u8>) -> Result<(), Status> {
    let takes_many = ["RegistryService/Session", "SnapshotService/Watch", "ServerReflectionInfo"].iter().any(|name| rpc.ends_with(name));
    // Of those that take one message, the end of the stream is a part.
    let more = if takes_many { stream::pending().boxed() } else { stream::empty().boxed() };
    let mut request = Request::new(stream::iter([message]).chain(more));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = format!("/{rpc}").parse().unwrap();
    let mut answer = client.streaming(request, path, AsTheyAre).await?.into_inner();
    match answer.message().await? {
        Some(_) => Ok(()),
        None => panic!("{rpc} answers nothing"),
    }
}

/// Messages as the bytes they are.
#[derive(Clone, Copy)]
struct AsTheyAre;

impl Codec for AsTheyAre {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsTheyAre {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for AsTheyAre {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
