-- Run in one transaction, which also adds number 3 to `migration`. The payloads of each node in the order of their ids: what
-- a start reads of its own, and what other nodes show.
CREATE INDEX payload_of_node ON payload_manager.payload (owner, namespace, id);
