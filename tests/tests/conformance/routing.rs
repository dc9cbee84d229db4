//! Behaviour 4: every form of a topic pattern matches in the database as it does in the domain.

use std::collections::BTreeSet;

use laneway_core::{NewMessage, Topic, TopicPattern};
use laneway_testing::{Random, seed};

use crate::fixture::*;

/// Segments that tempt: characters that LIKE, GLOB and regular expressions treat specially, and both cases.
const SEGMENTS: [&str; 10] = ["a", "A", "b", "ab", "a-b", "a_b", "axb", "_", "-", "0"];

fn random_topic(random: &mut Random) -> String {
    let segments: Vec<&str> = (0..=random.below(4)).map(|_| *random.pick(&SEGMENTS)).collect();
    segments.join(".")
}

fn random_pattern(random: &mut Random) -> String {
    let length = 1 + random.below(5);
    let segments: Vec<&str> = (0..length)
        .map(|position| match random.unit() {
            draw if draw < 0.25 => "*",
            draw if draw < 0.45 && position == length - 1 => ">",
            _ => *random.pick(&SEGMENTS),
        })
        .collect();
    segments.join(".")
}

conformance! {
    async fn patterns_match_in_the_database_as_in_the_domain(fixture: &Fixture) {
        let mut random = Random::new(seed());
        let by_hand = [
            ">",
            "*",
            "*.*",
            "*.>",
            "a",
            "a.b",
            "a.*",
            "a.>",
            "*.b",
            "*.b.>",
            "a.*.b",
            "a.*.*",
            "a.*.>",
            "a.*.b.>",
            "*.*.b",
            "a.b.>",
            "a_b",
            "a_b.*",
            "*.a_b.>",
            "A.>",
            "-.>",
            "_.*",
            "*.a.*.b.>",
            "*.*.a.>",
        ];
        let patterns: BTreeSet<String> =
            by_hand.map(str::to_owned).into_iter().chain((0..80).map(|_| random_pattern(&mut random))).collect();
        let patterns: Vec<TopicPattern> = patterns.iter().map(|text| TopicPattern::parse(text).unwrap()).collect();
        let topics: BTreeSet<String> = ["a", "a.b", "a.b.a", "a.x.b.a", "a_b.a", "axb.a"]
            .map(str::to_owned)
            .into_iter()
            .chain((0..400).map(|_| random_topic(&mut random)))
            .collect();

        let named: Vec<(String, &TopicPattern)> =
            patterns.iter().enumerate().map(|(number, pattern)| (format!("s{number:03}"), pattern)).collect();
        fixture.apply(named.iter().map(|(name, pattern)| subscription(name, pattern.as_str())).collect()).await;
        let messages: Vec<NewMessage> =
            topics.iter().map(|topic| NewMessage::new(Topic::parse(topic).unwrap(), "{}")).collect();
        fixture.enqueue(&messages).await;

        let found = fixture
            .sql()
            .await
            .texts(
                "select m.topic || ' ' || s.name from @delivery d join @message m on m.seq = d.message_seq
             join @subscription s on s.id = d.subscription_id",
            )
            .await;
        let unrouted = fixture
            .sql()
            .await
            .texts("select m.topic from @unrouted u join @message m on m.seq = u.message_seq")
            .await;
        let count = found.len();
        let found: BTreeSet<String> = found.into_iter().collect();
        assert_eq!(count, found.len(), "a delivery stands twice");
        let wanted: BTreeSet<String> = topics
            .iter()
            .flat_map(|topic| {
                let parsed = Topic::parse(topic).unwrap();
                named
                    .iter()
                    .filter(move |(_, pattern)| pattern.matches(&parsed))
                    .map(move |(name, _)| format!("{topic} {name}"))
            })
            .collect();
        let explain = |pairs: Vec<&String>| -> Vec<String> {
            pairs
                .into_iter()
                .map(|pair| {
                    let (topic, name) = pair.split_once(' ').unwrap();
                    format!("{topic} / {}", named.iter().find(|(found, _)| found == name).unwrap().1)
                })
                .collect()
        };
        let (extra, missing) =
            (explain(found.difference(&wanted).collect()), explain(wanted.difference(&found).collect()));
        assert!(extra.is_empty() && missing.is_empty(), "matched wrongly: {extra:?}\nnot matched: {missing:?}");
        assert_eq!(unrouted, Vec::<String>::new(), "`>` matches everything");
    }
}
