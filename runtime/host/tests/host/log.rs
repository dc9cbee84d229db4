//! Log lines of guests.

use crate::guest::{Guest, LOG, OK};
use crate::support::{Captured, call, handler, run};

#[tokio::test]
async fn a_line_carries_the_subscription_the_message_and_the_guests_fields() {
    // One field at 64: its name at 32 and its value at 40.
    let work = format!(
        "(i32.store (i32.const 64) (i32.const 32)) (i32.store (i32.const 68) (i32.const 5))
        (i32.store (i32.const 72) (i32.const 40)) (i32.store (i32.const 76) (i32.const 2))
        (call $log (i32.const 3) (i32.const 16) (i32.const 11) (i32.const 64) (i32.const 1)) {OK}"
    );
    let data = r#"(data (i32.const 16) "late\nflight") (data (i32.const 32) "delay") (data (i32.const 40) "42")"#;
    let plugin = handler(&Guest::handler(&work).fields(LOG).fields(data));
    let logged = Captured::default();
    {
        let _guard = tracing::subscriber::set_default(logged.subscriber());
        run(&plugin, call()).await.result.unwrap();
    }
    let text = logged.text();
    assert!(text.contains("WARN laneway::plugin: late flight"), "{text}");
    let plugin = plugin.digest();
    let fields = format!("subscription=test plugin={plugin} message_id=\"m-1\" fields=\"delay=42\"");
    assert!(text.contains(&fields), "{text}");
}

#[tokio::test]
async fn lines_over_the_limit_are_dropped_with_a_line_that_counts_them() {
    let work = format!(
        "(loop $again
            (call $log (i32.const 2) (i32.const 16) (i32.const 4) (i32.const 0) (i32.const 0))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const 123)))) {OK}"
    );
    let plugin = handler(&Guest::handler(&work).fields(LOG).fields(r#"(data (i32.const 16) "line")"#));
    let logged = Captured::default();
    {
        let _guard = tracing::subscriber::set_default(logged.subscriber());
        run(&plugin, call()).await.result.unwrap();
    }
    let text = logged.text();
    assert_eq!(text.matches("INFO laneway::plugin: line").count(), 100, "{text}");
    assert_eq!(text.matches("23 further lines dropped").count(), 1, "{text}");
}
