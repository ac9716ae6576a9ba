//! What was found, as a table.

use std::collections::BTreeMap;

use crate::check::{Fault, Finding};
use crate::disk::Mode;
use crate::explore::{Cut, Plan, kept_at};
use crate::record::Recorded;
use crate::setup::{Backend, Durable, Role};

/// Counts states and faults.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    rows: BTreeMap<(Backend, Role, Durable, Mode), Row>,
    told: BTreeMap<(Backend, Role, Durable, Mode, Fault), usize>,
}

#[derive(Debug, Default)]
struct Row {
    states: usize,
    faults: BTreeMap<Fault, usize>,
}

/// So many faults of a kind are told one by one.
const TOLD: usize = 2;

impl Tally {
    /// Counts one state. The first of each kind of fault are printed, with the line that shows them again.
    pub(crate) fn add(&mut self, plan: &Plan, recorded: &Recorded, cut: Cut, finding: Option<Finding>) {
        let setup = &recorded.setup;
        let row = self.rows.entry((setup.backend, setup.role, setup.durable, cut.mode)).or_default();
        row.states += 1;
        let Some(Finding { fault, words }) = finding else { return };
        *row.faults.entry(fault).or_default() += 1;
        let told = self.told.entry((setup.backend, setup.role, setup.durable, cut.mode, fault)).or_default();
        *told += 1;
        if *told <= TOLD {
            let ignored = plan.deaf.as_ref().map(|deaf| format!(" --ignore-sync {deaf}")).unwrap_or_default();
            println!("{}, {}: {words}", setup.to_line(), fault.name());
            println!(
                "  reproduce: replikv-crash again {} --point {} --mode {} --draw {}{ignored}",
                kept_at(recorded, &plan.failures).display(),
                cut.point,
                cut.mode.name(),
                cut.draw,
            );
        }
    }

    pub(crate) fn states(&self) -> usize {
        self.rows.values().map(|row| row.states).sum()
    }

    pub(crate) fn faults(&self) -> usize {
        self.rows.values().flat_map(|row| row.faults.values()).sum()
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        println!("| backend | role | durability | mode | states | failures |");
        println!("| --- | --- | --- | --- | ---: | --- |");
        for ((backend, role, durable, mode), row) in &self.rows {
            let kinds: Vec<String> =
                row.faults.iter().map(|(fault, count)| format!("{} {count}", fault.name())).collect();
            let kinds = if kinds.is_empty() { "0".into() } else { kinds.join(", ") };
            let (backend, role, durable, mode) = (backend.name(), role.name(), durable.name(), mode.name());
            println!("| {backend} | {role} | {durable} | {mode} | {} | {kinds} |", row.states);
        }
        println!("{} states, {} failures", self.states(), self.faults());
    }
}
