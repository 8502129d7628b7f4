//! The lock that its owner can take again.

use super::suite::rlock as suite;
use crate::process::suite::By;

by_both_safe_ways! {
    an_owner_takes_it_again_and_others_do_not
}
