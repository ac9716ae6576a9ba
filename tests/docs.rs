//! What the documents say is there, is there: the tests that docs/guarantees.md and docs/reliability.md name, and where links lead.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Fewer could only mean that the document is not read as it is written.
const AT_LEAST: usize = 80;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `path/from/the/root.rs::test`, in backticks.
fn named_tests(document: &str) -> BTreeSet<(String, String)> {
    let spans = document.split('`').skip(1).step_by(2);
    let named = spans.filter_map(|span| span.split_once(".rs::"));
    named.map(|(file, test)| (format!("{file}.rs"), test.to_string())).collect()
}

/// A test function, an entry `name: ...` of a macro that makes one test for each, or a law in the list of the suite.
fn holds_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let function = format!("fn {name}(");
    let is_test = |at: usize| {
        let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        above.into_iter().any(|line| line.starts_with("#[") && line.contains("test"))
    };
    let tests = (0..lines.len()).any(|at| lines[at].contains(&function) && is_test(at));
    let entry = source.contains("macro_rules!") && lines.iter().any(|line| line.starts_with(&format!("{name}:")));
    let law = source.contains("macro_rules! conformance_suite")
        && lines.iter().filter(|line| !line.starts_with("//")).any(|line| line.split_whitespace().any(|w| w == name));
    tests || entry || law
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let mut named = named_tests(&read(&root().join("docs/guarantees.md")));
    assert!(named.len() >= AT_LEAST, "only {} tests are named", named.len());
    let tried = named_tests(&read(&root().join("docs/reliability.md")));
    assert!(tried.len() >= 25, "only {} tests are named", tried.len());
    named.extend(tried);
    let missing: Vec<String> = named
        .iter()
        .filter(|(file, test)| {
            let path = root().join(file);
            !path.is_file() || !holds_test(&read(&path), test)
        })
        .map(|(file, test)| format!("{file}::{test}"))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/guarantees.md or docs/reliability.md names tests that are not there:\n{}",
        missing.join("\n")
    );
}

/// Where the links of a document lead, without those to the web and within the document.
fn relative_links(document: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut is_code = false;
    for line in document.lines() {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            continue;
        }
        // Code in a line is no link.
        let words: String = line.split('`').step_by(2).collect();
        let targets = words.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let targets = targets.map(|(target, _)| target.split('#').next().unwrap_or_default().to_string());
        links.extend(targets.filter(|target| !target.is_empty() && !target.contains("://")));
    }
    links
}

#[test]
fn every_relative_link_leads_to_a_file() {
    let mut documents: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].iter().map(|name| root().join(name)).collect();
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    documents.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    let mut links = 0;
    for document in documents {
        let dir = document.parent().unwrap();
        for link in relative_links(&read(&document)) {
            links += 1;
            assert!(dir.join(&link).exists(), "{} links to {link}, which is not there", document.display());
        }
    }
    assert!(links > 0);
}

/// Lines of code that a document quotes, without comments.
fn quoted_lines(document: &str) -> Vec<String> {
    let blocks = document.split("```rust,ignore\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let lines = blocks.flat_map(|(block, _)| block.lines());
    let code = lines.map(|line| line.split("//").next().unwrap_or_default().trim().to_string());
    code.filter(|line| !line.is_empty()).collect()
}

#[test]
fn what_is_quoted_is_in_the_examples() {
    let quoted = quoted_lines(&read(&root().join("docs/custom_store.md")));
    assert!(quoted.len() > 20, "only {} lines are quoted", quoted.len());
    let examples = ["examples/custom_store.rs", "examples/networked_store.rs"].map(|path| read(&root().join(path)));
    let lines: BTreeSet<&str> = examples.iter().flat_map(|source| source.lines().map(str::trim)).collect();
    for line in quoted {
        assert!(lines.contains(&line[..]), "docs/custom_store.md quotes what the examples do not say: {line}");
    }
}

#[test]
fn what_is_named_but_not_there_is_noticed() {
    let source = "
        /// Words.
        #[tokio::test]
        async fn there() {}
        fn helper() {}
        macro_rules! pairs { () => {} }
        pairs! {
            a_pair: 1 2;
        }";
    for (name, held) in [("there", true), ("a_pair", true), ("helper", false), ("absent", false), ("ther", false)] {
        assert_eq!(holds_test(source, name), held, "{name}");
    }
    let suite = "macro_rules! conformance_suite { entries { a_law another_law } }";
    assert!(holds_test(suite, "a_law") && !holds_test(suite, "a_la"));
    let named = named_tests("see `a/b.rs::there`, and `code`, and `c.rs::x`");
    assert_eq!(named.len(), 2);
    let links = relative_links("[a](x.md#y) `[b](no)` [c](https://x) [d](#e)\n```\n[f](no)\n```\n[g](../z.rs)");
    assert_eq!(links, ["x.md", "../z.rs"]);
}
