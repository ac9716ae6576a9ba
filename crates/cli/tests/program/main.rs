//! The program, driven as people and scripts drive it: by its arguments, its output and its exit code.

mod aggregates;
mod backup;
mod bench;
mod cascade;
mod demo;
mod deploy;
mod descriptors;
mod files;
mod filters;
mod gather;
mod kept;
mod network;
mod output;
mod parts;
mod promotion;
mod reads;
mod refusals;
mod signals;
mod support;
mod watched;
