//! What executes in replikv: Master, Slave, their drivers and transports, on tokio.
