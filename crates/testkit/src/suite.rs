//! The macro, and the list of laws that it expands to.

use crate::Open;

/// Expands to one `#[test]` for each law of the store contract.
///
/// `$open` is an [`Open`](crate::Open). `persistent` says that what was applied outlives the process; `volatile`, that
/// it does not: then the laws about that are left out, and no others.
#[macro_export]
macro_rules! conformance_suite {
    ($open:path, volatile) => {
        $crate::law_list! { law_tests $open, Nothing }
    };
    ($open:path, persistent) => {
        $crate::law_list! { law_tests $open, Nothing }
        $crate::law_list! { law_tests $open, Persistence }
        $crate::law_list! { law_tests $open, Process }
    };
}

/// One law of the store contract.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Law {
    /// Its name: a sentence.
    pub name: &'static str,
    /// What a store must be for the law to apply to it.
    pub needs: Needs,
    /// Tries it, as [`run`](crate::run) does: panics if it does not hold.
    pub check: fn(Open, &'static str),
}

/// What a store must be for a law to apply to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Needs {
    /// Every store.
    Nothing,
    /// A store that can be closed and opened again.
    Persistence,
    /// A store that outlives its process; the law starts its own test as another process.
    Process,
}

/// Every law, from the very list that [`conformance_suite!`] expands to.
pub fn laws() -> Vec<Law> {
    let mut laws = Vec::new();
    crate::law_list! { law_entries laws, Nothing };
    crate::law_list! { law_entries laws, Persistence };
    crate::law_list! { law_entries laws, Process };
    laws
}

// The one list. Whoever wants something of every law passes the name of a macro of this crate.
#[doc(hidden)]
#[macro_export]
macro_rules! law_list {
    ($each:ident $argument:path, Nothing) => {
        $crate::$each! { $argument, Nothing:
            entries {
                a_fresh_store_holds_nothing what_is_put_is_read a_put_replaces a_delete_removes_its_key_alone
                keyspaces_are_apart an_empty_value_is_a_value every_byte_is_kept the_largest_entries_are_kept
                an_empty_write_set_changes_nothing a_value_in_pieces_is_read_as_one
                many_keys_are_read_as_each_alone what_is_said_of_its_size_is_about_right
            }
            order {
                the_last_put_of_a_key_wins a_delete_after_a_put_removes a_put_after_a_delete_stays
                a_range_delete_removes_what_the_set_has_put_before a_put_after_a_range_delete_stays
                sets_apply_one_after_the_other a_large_set_is_applied_whole
                random_sets_come_to_what_a_map_makes_of_them
            }
            ranges {
                a_range_delete_keeps_to_its_bounds a_scan_keeps_to_its_bounds
                a_range_delete_without_bounds_removes_everything an_inverted_range_deletes_nothing
                an_inverted_range_holds_nothing bounds_may_be_longer_than_any_key no_key_sorts_above_the_last_prefix
            }
            pages {
                a_scan_is_in_byte_order a_page_is_bounded_in_entries a_page_is_bounded_in_bytes
                a_page_holds_one_entry_at_least pages_join_without_gap_or_overlap
                reverse_pages_join_without_gap_or_overlap values_stay_with_their_keys
                a_scan_goes_on_behind_its_last_key
            }
            limits {
                an_empty_key_is_refused a_key_too_long_is_refused a_key_too_long_cannot_be_asked_for
                a_value_too_large_is_refused a_set_too_large_is_refused the_limits_leave_room_for_replication
            }
            fences {
                a_condition_that_holds_lets_the_set_through a_condition_that_fails_changes_nothing
                every_condition_counts a_condition_is_checked_before_the_set two_writers_never_share_a_head
            }
            cursors {
                a_cursor_is_read_as_it_was_set links_have_cursors_of_their_own a_refused_set_does_not_move_the_cursor
                data_and_cursor_never_part
            }
            concurrency {
                a_page_never_shows_half_a_write_set a_replaced_range_is_never_seen_empty
                what_is_applied_is_seen_by_everybody thousands_of_readers_and_writers_are_served
                a_dropped_apply_is_whole_or_absent a_dropped_read_disturbs_nothing
            }
            life {
                a_closed_store_refuses_everything closing_twice_is_no_error reopening_a_healthy_store_changes_nothing
                a_sync_succeeds
            }
        }
    };
    ($each:ident $argument:path, Persistence) => {
        $crate::$each! { $argument, Persistence:
            persistence {
                what_was_applied_is_there_after_reopening deletes_are_kept a_cursor_is_kept
                a_closed_store_can_be_opened_at_once a_second_open_is_busy
            }
        }
    };
    ($each:ident $argument:path, Process) => {
        $crate::$each! { $argument, Process:
            kills { a_kill_leaves_whole_sets synced_sets_survive_a_kill a_kill_does_not_part_data_and_cursor }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! law_tests {
    ($open:path, $needs:ident: $($module:ident { $($law:ident)* })*) => {$($(
        #[test]
        fn $law() {
            let test = concat!(module_path!(), "::", stringify!($law));
            $crate::run($open, test, $crate::laws::$module::$law);
        }
    )*)*};
}

#[doc(hidden)]
#[macro_export]
macro_rules! law_entries {
    ($laws:path, $needs:ident: $($module:ident { $($law:ident)* })*) => {
        $laws.extend([$($(
            $crate::Law {
                name: stringify!($law),
                needs: $crate::Needs::$needs,
                check: |open, test| $crate::run(open, test, $crate::laws::$module::$law),
            },
        )*)*])
    };
}
