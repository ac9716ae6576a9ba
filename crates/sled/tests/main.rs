//! sled as a store. One program, so that what it is made of is built once; a file for each subject.

mod support;

mod adopted;
mod opening;
mod pages;
