//! Many mutants in one source: each a branch that is taken if it is the one that is tried.
//!
//! What is written is only added, nothing is moved: `a + b` becomes `(if active(7) { (a) - (b) } else { a + b })`, a body begins
//! with `if active(8) { return … }`, an arm has `!active(9)` among its conditions. A branch holds the original text of what it
//! is made of, so that sources grow with the number of mutants, and not with how they are nested. Such sources are called
//! mutant schemata (Untch, Offutt and Harrold, 1993).

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::list::{Genre, Mutant, Place};

/// A source with its mutants.
pub(crate) struct Woven {
    /// What is compiled.
    pub(crate) text: String,
    /// Where in `text` what mutants brought is.
    pub(crate) regions: Vec<Region>,
    /// Those that cannot be a branch.
    pub(crate) apart: Vec<usize>,
}

/// What some mutants brought.
pub(crate) struct Region {
    /// All that share it.
    pub(crate) numbers: Vec<usize>,
    /// Where it is.
    pub(crate) at: Range<usize>,
}

/// Adds `mutants`, by their numbers, to `source`. `active` is the path of the function that says which of them is tried.
pub(crate) fn weave(source: &str, mutants: &[(usize, &Mutant)], active: &str) -> Result<Woven> {
    let file = syn::parse_file(source).context("no Rust")?;
    let lines: Vec<usize> = std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let offset = |place: Place| -> Result<usize> {
        let start = *lines.get(place.line - 1).context("beyond the end")?;
        let line = &source[start..];
        Ok(start + line.char_indices().nth(place.column - 1).map_or(line.len(), |(at, _)| at))
    };

    let mut loom = Loom { source, active, wanted: HashMap::new(), woven: Vec::new(), edits: Vec::new() };
    for (number, mutant) in mutants {
        let at = offset(mutant.span.start)?..offset(mutant.span.end)?;
        // `impl Iterator` is one type, and a branch would be another one.
        if mutant.genre == Genre::FnValue && mutant.function.as_ref().is_some_and(|of| of.return_type.contains("impl "))
        {
            continue;
        }
        if mutant.genre == Genre::FnValue {
            let call = format!("if {active}({number}) {{ return {}; }} ", mutant.replacement);
            loom.edits.push(Edit { at: at.start, order: (0, 0), text: call, numbers: vec![*number] });
            loom.woven.push(*number);
        } else {
            loom.wanted.entry((mutant.genre, at.start)).or_default().push((*number, *mutant));
        }
    }
    loom.visit_file(&file);

    let Loom { mut edits, woven, .. } = loom;
    edits.sort_by_key(|edit| (edit.at, edit.order));
    let (mut text, mut regions, mut from) = (String::with_capacity(source.len() * 2), Vec::new(), 0);
    for edit in edits {
        text.push_str(&source[from..edit.at]);
        from = edit.at;
        let start = text.len();
        text.push_str(&edit.text);
        regions.push(Region { numbers: edit.numbers, at: start..text.len() });
    }
    text.push_str(&source[from..]);
    let apart = mutants.iter().map(|(number, _)| *number).filter(|number| !woven.contains(number)).collect();
    Ok(Woven { text, regions, apart })
}

impl std::hash::Hash for Genre {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
    }
}

/// Text that is added at one place.
struct Edit {
    at: usize,
    /// Of what is added at one place: what ends before what begins, bodies before what they begin with, outer before inner
    /// where both begin, inner before outer where both end.
    order: (i8, isize),
    text: String,
    numbers: Vec<usize>,
}

struct Loom<'a> {
    source: &'a str,
    active: &'a str,
    wanted: HashMap<(Genre, usize), Vec<(usize, &'a Mutant)>>,
    woven: Vec<usize>,
    edits: Vec<Edit>,
}

impl<'a> Loom<'a> {
    fn take(&mut self, genre: Genre, at: usize) -> Vec<(usize, &'a Mutant)> {
        self.wanted.remove(&(genre, at)).unwrap_or_default()
    }

    fn text(&self, of: &impl Spanned) -> &'a str {
        &self.source[of.span().byte_range()]
    }

    /// An expression, and what stands in its place.
    fn branch(&mut self, whole: Range<usize>, branches: Vec<(usize, String)>) {
        let Some(((first, value), rest)) = branches.split_first() else { return };
        let active = self.active;
        let mut text = format!("(if {active}({first}) {{ {value} }}");
        for (number, value) in rest {
            text.push_str(&format!(" else if {active}({number}) {{ {value} }}"));
        }
        text.push_str(" else { ");
        let numbers: Vec<usize> = branches.iter().map(|(number, _)| *number).collect();
        self.woven.extend(&numbers);
        let len = whole.len() as isize;
        self.edits.push(Edit { at: whole.start, order: (1, -len), text, numbers: numbers.clone() });
        self.edits.push(Edit { at: whole.end, order: (-1, len), text: " })".to_owned(), numbers });
    }
}

impl<'ast> Visit<'ast> for Loom<'_> {
    fn visit_expr_binary(&mut self, expr: &'ast syn::ExprBinary) {
        let found = self.take(Genre::BinaryOperator, expr.op.span().byte_range().start);
        // `a && let Some(b) = c` is a condition and no value.
        if !holds_let(&expr.left) && !holds_let(&expr.right) {
            let (left, right) = (self.text(&expr.left), self.text(&expr.right));
            let branch =
                |(number, mutant): (usize, &Mutant)| (number, format!("({left}) {} ({right})", mutant.replacement));
            let branches = found.into_iter().map(branch).collect();
            self.branch(expr.span().byte_range(), branches);
        }
        visit::visit_expr_binary(self, expr);
    }

    fn visit_expr_unary(&mut self, expr: &'ast syn::ExprUnary) {
        let found = self.take(Genre::UnaryOperator, expr.op.span().byte_range().start);
        let inner = self.text(&expr.expr);
        let branches = found.into_iter().map(|(number, _)| (number, inner.to_owned())).collect();
        self.branch(expr.span().byte_range(), branches);
        visit::visit_expr_unary(self, expr);
    }

    fn visit_expr_match(&mut self, expr: &'ast syn::ExprMatch) {
        // Arms that are missing are missing from what is matched: that is what the compiler points at.
        let arms =
            expr.arms.iter().filter_map(|arm| self.wanted.get(&(Genre::MatchArm, arm.span().byte_range().start)));
        let numbers: Vec<usize> = arms.flatten().map(|(number, _)| *number).collect();
        if !numbers.is_empty() {
            let at = expr.expr.span().byte_range();
            let len = at.len() as isize + 1;
            self.edits.push(Edit { at: at.start, order: (1, -len), text: " ".to_owned(), numbers: numbers.clone() });
            self.edits.push(Edit { at: at.end, order: (-1, len), text: " ".to_owned(), numbers });
        }
        visit::visit_expr_match(self, expr);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        let active = self.active;
        if let Some((_, guard)) = &arm.guard
            && !holds_let(guard)
        {
            let found = self.take(Genre::MatchArmGuard, guard.span().byte_range().start);
            let branches = found.into_iter().map(|(number, mutant)| (number, mutant.replacement.clone())).collect();
            self.branch(guard.span().byte_range(), branches);
        }
        for (number, _) in self.take(Genre::MatchArm, arm.span().byte_range().start) {
            self.woven.push(number);
            let numbers = vec![number];
            match &arm.guard {
                Some((_, guard)) => {
                    let at = guard.span().byte_range();
                    let text = format!("!{active}({number}) && (");
                    let order = (1, -(at.len() as isize) - 1);
                    self.edits.push(Edit { at: at.start, order, text, numbers: numbers.clone() });
                    let order = (-1, at.len() as isize + 1);
                    self.edits.push(Edit { at: at.end, order, text: ")".to_owned(), numbers });
                }
                None => {
                    let at = arm.pat.span().byte_range().end;
                    self.edits.push(Edit { at, order: (-1, 0), text: format!(" if !{active}({number})"), numbers });
                }
            }
        }
        visit::visit_arm(self, arm);
    }

    fn visit_expr_struct(&mut self, expr: &'ast syn::ExprStruct) {
        let mut branches = Vec::new();
        for (left_out, field) in expr.fields.iter().enumerate() {
            for (number, _) in self.take(Genre::StructField, field.span().byte_range().start) {
                let mut text = format!("{} {{ ", self.text(&expr.path));
                for (_, field) in expr.fields.iter().enumerate().filter(|(other, _)| *other != left_out) {
                    text.push_str(&format!("{}, ", self.text(field)));
                }
                let base = expr.rest.as_ref().map_or("", |base| self.text(base));
                text.push_str(&format!("..{base} }}"));
                branches.push((number, text));
            }
        }
        self.branch(expr.span().byte_range(), branches);
        visit::visit_expr_struct(self, expr);
    }
}

/// Whether a chain of conditions has a `let` in it.
fn holds_let(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(binary) => holds_let(&binary.left) || holds_let(&binary.right),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::Span;

    fn mutant(genre: Genre, source: &str, what: &str, replacement: &str) -> Mutant {
        let at = source.find(what).unwrap();
        let place = |at: usize| {
            let before = &source[..at];
            let line = before.matches('\n').count() + 1;
            Place { line, column: before.rsplit('\n').next().unwrap().chars().count() + 1 }
        };
        let span = Span { start: place(at), end: place(at + what.len()) };
        Mutant {
            name: String::new(),
            file: String::new(),
            genre,
            replacement: replacement.to_owned(),
            span,
            function: None,
        }
    }

    fn woven(source: &str, mutants: &[Mutant]) -> Woven {
        let numbered: Vec<(usize, &Mutant)> = mutants.iter().enumerate().collect();
        weave(source, &numbered, "active").unwrap()
    }

    #[test]
    fn what_is_nested_stays_nested() {
        let source = "fn f(a: u8, b: u8) -> bool {\n    // über\n    !(a + b == a * 2)\n}\n";
        let woven = woven(
            source,
            &[
                mutant(Genre::FnValue, source, "!(a", "true"),
                mutant(Genre::UnaryOperator, source, "!", ""),
                mutant(Genre::BinaryOperator, source, "==", "!="),
                mutant(Genre::BinaryOperator, source, "+", "-"),
                mutant(Genre::BinaryOperator, source, "*", "/"),
            ],
        );
        assert!(woven.apart.is_empty());
        let body = woven.text.lines().nth(2).unwrap().trim();
        assert_eq!(
            body,
            "if active(0) { return true; } (if active(1) { (a + b == a * 2) } else { !((if active(2) { (a + b) != (a * 2) } else \
             { (if active(3) { (a) - (b) } else { a + b }) == (if active(4) { (a) / (2) } else { a * 2 }) })) })"
        );
        assert!(syn::parse_file(&woven.text).is_ok());
    }

    #[test]
    fn an_arm_keeps_its_guard() {
        let source = "fn f(a: u8) -> u8 {\n match a { 0 => 1, n if n > 3 => 2, _ => 3 }\n}\n";
        let woven = woven(
            source,
            &[
                mutant(Genre::MatchArm, source, "0 => 1", ""),
                mutant(Genre::MatchArm, source, "n if n > 3 => 2", ""),
                mutant(Genre::MatchArmGuard, source, "n > 3", "true"),
                mutant(Genre::BinaryOperator, source, "> 3", ">="),
            ],
        );
        assert!(woven.apart.is_empty());
        assert!(woven.text.contains(
            "0 if !active(0) => 1, n if !active(1) && ((if active(2) { true } else { (if active(3) { (n) >= (3) } else { n > 3 }) \
             })) => 2"
        ));
        assert!(syn::parse_file(&woven.text).is_ok());
    }

    #[test]
    fn a_condition_with_let_is_left_alone() {
        let source = "fn f(a: Option<u8>) -> bool {\n if true && let Some(b) = a && b > 2 { true } else { false }\n}\n";
        let both =
            [mutant(Genre::BinaryOperator, source, "&&", "||"), mutant(Genre::BinaryOperator, source, "> 2", "<")];
        let woven = woven(source, &both);
        assert_eq!(woven.apart, [0]);
        assert!(woven.text.contains("(if active(1) { (b) < (2) } else { b > 2 })"));
    }

    #[test]
    fn a_field_is_left_to_the_base() {
        let source = "fn f(b: P) -> P {\n P { x: 1, y: 2, ..b }\n}\n";
        let woven = woven(source, &[mutant(Genre::StructField, source, "x: 1", "")]);
        assert!(woven.text.contains("(if active(0) { P { y: 2, ..b } } else { P { x: 1, y: 2, ..b } })"));
    }
}
