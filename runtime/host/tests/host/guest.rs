//! Components for tests, written as core WebAssembly text.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Interfaces of WASI that guests here use, cut down to the functions that they use.
const WASI: &str = "
package wasi:io@0.2.0 {
    interface poll {
        resource pollable { block: func(); ready: func() -> bool; }
        poll: func(in: list<borrow<pollable>>) -> list<u32>;
    }
    interface error { resource error; }
    interface streams {
        use error.{error};
        variant stream-error { last-operation-failed(error), closed }
        resource input-stream { blocking-read: func(len: u64) -> result<list<u8>, stream-error>; }
        resource output-stream {
            check-write: func() -> result<u64, stream-error>;
            write: func(contents: list<u8>) -> result<_, stream-error>;
            blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
            write-zeroes: func(len: u64) -> result<_, stream-error>;
        }
    }
}
package wasi:clocks@0.2.0 {
    interface monotonic-clock {
        use wasi:io/poll@0.2.0.{pollable};
        now: func() -> u64;
        subscribe-duration: func(when: u64) -> pollable;
    }
    interface wall-clock {
        record datetime { seconds: u64, nanoseconds: u32 }
        now: func() -> datetime;
    }
}
package wasi:random@0.2.0 {
    interface random { get-random-bytes: func(len: u64) -> list<u8>; get-random-u64: func() -> u64; }
    interface insecure { get-insecure-random-u64: func() -> u64; }
    interface insecure-seed { insecure-seed: func() -> tuple<u64, u64>; }
}
package wasi:cli@0.2.0 {
    interface environment { get-arguments: func() -> list<string>; }
    interface exit { exit: func(status: result); }
    interface stdin {
        use wasi:io/streams@0.2.0.{input-stream};
        get-stdin: func() -> input-stream;
    }
    interface stdout {
        use wasi:io/streams@0.2.0.{output-stream};
        get-stdout: func() -> output-stream;
    }
}
package wasi:http@0.2.0 {
    interface types {
        use wasi:io/streams@0.2.0.{output-stream};
        variant header-error { invalid-syntax, forbidden, immutable }
        variant method { get, head, post, put, delete, connect, options, trace, patch, other(string) }
        resource fields {
            constructor();
            append: func(name: string, value: list<u8>) -> result<_, header-error>;
        }
        resource outgoing-body { write: func() -> result<output-stream>; }
        resource outgoing-request {
            constructor(headers: fields);
            body: func() -> result<outgoing-body>;
            set-method: func(method: method) -> result;
            set-path-with-query: func(path-with-query: option<string>) -> result;
            set-authority: func(authority: option<string>) -> result;
        }
        resource request-options;
        resource future-incoming-response;
        record DNS-error-payload { rcode: option<string>, info-code: option<u16> }
        record TLS-alert-received-payload { alert-id: option<u8>, alert-message: option<string> }
        record field-size-payload { field-name: option<string>, field-size: option<u32> }
        variant error-code {
            DNS-timeout, DNS-error(DNS-error-payload), destination-not-found, destination-unavailable,
            destination-IP-prohibited, destination-IP-unroutable, connection-refused, connection-terminated,
            connection-timeout, connection-read-timeout, connection-write-timeout, connection-limit-reached,
            TLS-protocol-error, TLS-certificate-error, TLS-alert-received(TLS-alert-received-payload),
            HTTP-request-denied, HTTP-request-length-required, HTTP-request-body-size(option<u64>),
            HTTP-request-method-invalid, HTTP-request-URI-invalid, HTTP-request-URI-too-long,
            HTTP-request-header-section-size(option<u32>), HTTP-request-header-size(option<field-size-payload>),
            HTTP-request-trailer-section-size(option<u32>), HTTP-request-trailer-size(field-size-payload),
            HTTP-response-incomplete, HTTP-response-header-section-size(option<u32>),
            HTTP-response-header-size(field-size-payload), HTTP-response-body-size(option<u64>),
            HTTP-response-trailer-section-size(option<u32>), HTTP-response-trailer-size(field-size-payload),
            HTTP-response-transfer-coding(option<string>), HTTP-response-content-coding(option<string>),
            HTTP-response-timeout, HTTP-upgrade-failed, HTTP-protocol-error, loop-detected, configuration-error,
            internal-error(option<string>)
        }
    }
    interface outgoing-handler {
        use types.{outgoing-request, request-options, future-incoming-response, error-code};
        handle: func(request: outgoing-request, options: option<request-options>)
            -> result<future-incoming-response, error-code>;
    }
}
package evil:host@1.0.0 {
    interface run { run: func(); }
}
";

/// What every guest has: memory, an allocator that is emptied after each call, and a `validate` that accepts.
///
/// Addresses up to 65536 are the guest's own; a zeroed result at 1024 means success. This is the allocator's body.
const ALLOC: &str = r"
        (local.set $at (i32.and
            (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
            (i32.sub (i32.const 0) (local.get $align))))
        (global.set $heap (i32.add (local.get $at) (local.get $size)))
        (block $enough
            (loop $more
                (br_if $enough (i32.le_u (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
                (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
                (br $more)))
        (local.get $at)
";

/// A guest under construction.
pub struct Guest {
    world: &'static str,
    imports: Vec<&'static str>,
    memory: String,
    fields: String,
    alloc: String,
    post_return: String,
    validate: String,
    work: String,
}

impl Guest {
    /// A handler; `work` is the body of `handle`, with the message's address in `$message` and the address of the
    /// result to be left on the stack.
    pub fn handler(work: &str) -> Self {
        Self::new("handler-plugin", work)
    }

    /// A publisher; `work` is the body of `publish`, with the batch at `$batch` and its length in `$length`.
    pub fn publisher(work: &str) -> Self {
        Self::new("publisher-plugin", work)
    }

    fn new(world: &'static str, work: &str) -> Self {
        Self {
            world,
            imports: Vec::new(),
            memory: "2".to_owned(),
            fields: String::new(),
            alloc: ALLOC.to_owned(),
            post_return: "(global.set $heap (i32.const 65536))".to_owned(),
            validate: "(i32.const 1024)".to_owned(),
            work: work.to_owned(),
        }
    }

    /// Adds fields to the module: imports, data, functions, tables.
    pub fn fields(mut self, fields: &str) -> Self {
        self.fields.push_str(fields);
        self.fields.push_str(";;--");
        self
    }

    /// Adds an interface to the world's imports.
    pub fn import(mut self, interface: &'static str) -> Self {
        self.imports.push(interface);
        self
    }

    /// Pages of memory to start with.
    pub fn pages(mut self, pages: u32) -> Self {
        self.memory = pages.to_string();
        self
    }

    /// The body of the allocator, instead of the one that works.
    pub fn alloc(mut self, body: &str) -> Self {
        body.clone_into(&mut self.alloc);
        self
    }

    /// The body of what is called once the host has read the answer.
    pub fn post_return(mut self, body: &str) -> Self {
        body.clone_into(&mut self.post_return);
        self
    }

    /// The body of `validate`.
    pub fn validate(mut self, body: &str) -> Self {
        body.clone_into(&mut self.validate);
        self
    }

    /// The component's bytes. The text of the module is parsed strictly; whether it is valid, the host finds out.
    pub fn build(&self) -> Vec<u8> {
        let (name, signature) = match self.world {
            "handler-plugin" => ("laneway:plugin/handler@0.1.0#handle", "(param $message i32) (result i32)"),
            _ => ("laneway:plugin/publisher@0.1.0#publish", "(param $batch i32) (param $length i32) (result i32)"),
        };
        // Imports come first in a module.
        let (imports, others): (Vec<&str>, Vec<&str>) =
            self.fields.split(";;--").partition(|part| part.trim_start().starts_with("(import"));
        let module = format!(
            r#"(module {imports} (memory (export "memory") {memory}) {others}
                (global $heap (mut i32) (i32.const 65536))
                (func $alloc (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32)
                    (result i32) (local $at i32) {alloc})
                (func (export "laneway:plugin/lifecycle@0.1.0#validate") (result i32) {validate})
                (func (export "{name}") {signature} (local $i i32) {work})
                (func (export "cabi_post_{name}") (param i32) {post_return}))"#,
            imports = imports.concat(),
            others = others.concat(),
            memory = self.memory,
            alloc = self.alloc,
            post_return = self.post_return,
            validate = self.validate,
            work = self.work,
        );
        self.wrap(wat::parse_str(module).expect("the guest's text is well formed"))
    }

    /// A component of the guest's world around a core module.
    pub fn wrap(&self, mut core: Vec<u8>) -> Vec<u8> {
        let mut resolve = Resolve::default();
        resolve.push_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit")).expect("the contract parses");
        let imports: String = self.imports.iter().map(|name| format!("import {name};")).collect();
        let world = format!(
            "package test:guest;\n{WASI}\nworld guest {{ include laneway:plugin/{}@0.1.0; {imports} }}",
            self.world
        );
        let package = resolve.push_str("guest.wit", &world).expect("the world parses");
        let world = resolve.select_world(&[package], Some("guest")).expect("the world is there");
        embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8, false).expect("metadata");
        ComponentEncoder::default()
            .validate(false)
            .module(&core)
            .expect("the module fits the world")
            .encode()
            .expect("the component is made")
    }
}

/// `log`, as an import; call it `$log`.
pub const LOG: &str = r#"(import "laneway:plugin/log@0.1.0" "log" (func $log (param i32 i32 i32 i32 i32)));;--"#;

/// The functions of `effects`, as imports.
pub const EFFECTS: &str = r#"
    (import "laneway:plugin/effects@0.1.0" "get" (func $get (param i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "put" (func $put (param i32 i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "delete" (func $delete (param i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "add" (func $add (param i32 i32 i64)))
    (import "laneway:plugin/effects@0.1.0" "count" (func $count (param i32 i32) (result i64)))
    (import "laneway:plugin/effects@0.1.0" "emit" (func $emit (param
        i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)))
;;--"#;

/// A function `$fail` that makes the result of a failure: which case of `failure`, then its code and its message.
pub const FAIL: &str = r#"
    (func $fail (param $case i32) (param $code i32) (param $code_len i32) (param $text i32) (param $text_len i32)
        (result i32)
        (i32.store8 (i32.const 2048) (i32.const 1))
        (i32.store8 (i32.const 2056) (local.get $case))
        (i32.store (i32.const 2064) (local.get $code))
        (i32.store (i32.const 2068) (local.get $code_len))
        (i32.store (i32.const 2072) (local.get $text))
        (i32.store (i32.const 2076) (local.get $text_len))
        (i32.const 2048))
;;--"#;

/// A function `$sleep` for so many nanoseconds. It needs `wasi:clocks/monotonic-clock` and `wasi:io/poll`.
pub const SLEEP: &str = r#"
    (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
    (import "wasi:io/poll@0.2.0" "[resource-drop]pollable" (func $drop (param i32)))
;;--
    (func $sleep (param $nanoseconds i64)
        (local $pollable i32)
        (local.set $pollable (call $subscribe (local.get $nanoseconds)))
        (call $block (local.get $pollable))
        (call $drop (local.get $pollable)))
;;--"#;

/// A function `$send` that sends a GET request to `https://example.com/`, and does not wait for the answer. It needs
/// `wasi:http/types` and `wasi:http/outgoing-handler`.
pub const SEND: &str = r#"
    (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
        (func $set_authority (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
        (func $set_path (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/outgoing-handler@0.2.0" "handle" (func $handle (param i32 i32 i32 i32)))
;;--
    (data (i32.const 256) "example.com/")
    (func $send
        (local $new i32)
        (local.set $new (call $request (call $fields)))
        (drop (call $set_authority (local.get $new) (i32.const 1) (i32.const 256) (i32.const 11)))
        (drop (call $set_path (local.get $new) (i32.const 1) (i32.const 267) (i32.const 1)))
        (call $handle (local.get $new) (i32.const 0) (i32.const 0) (i32.const 4096))
        (if (i32.load8_u (i32.const 4096)) (then unreachable)))
;;--"#;

/// The result of success.
pub const OK: &str = "(i32.const 1024)";
