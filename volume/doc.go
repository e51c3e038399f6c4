// Package volume is the catalogue: which volumes there are, where their
// replicas lie, and the door to their configurations.
//
// # Records
//
// All under /tandem/<cluster>/:
//
//	volume/<id>/spec               Spec: what was asked for, where it was placed, CREATING, READY or DELETING
//	volume/<id>/made/<replica>     while CREATING: the node has made this replica
//	volume/<id>/removed/<replica>  while DELETING: the node has removed it
//	volname/<name>                 the id; only while the volume is CREATING or READY
//	vol/<id>/cfg                   replication.Config: the only authority on who may write and who holds the data
//	group/<name>                   replication.Group: volumes whose writes depend on each other
//	volgroup/<id>                  the name of the volume's group; only while it is in one
//
// # Create and delete
//
// Neither has an owner. Create writes one transaction (spec and name) and waits. Every node's
// Reconciler makes the replicas placed on it and reports; whoever sees all reports first writes READY and the
// first configuration in one transaction. A replica that cannot be made, or is not made
// in time, turns the volume to DELETING, with the reason. Delete turns it to DELETING in one transaction with its
// configuration, so that nobody can attach it any more; every node removes its replica
// and reports; whoever sees all reports first removes the records. Each step is guarded on the revision of the spec: two nodes
// that do the same step do it once, and a node that dies leaves a step to the others. The replica of a
// node that does not come back keeps the record, DELETING, with the node's name; the name of the volume is free at once.
//
// What lies on a disk and belongs to no record is reported as an orphan and never removed: after a
// restore of the kvdb it may be the only copy.
//
// # Configurations and fencing
//
// Configs is the one door through which a configuration is changed. Every change is one transaction guarded on
//
//	the revision of the configuration that it was derived from      (I1)
//	the revision of the record of the domain that makes it, read as ACTIVE
//	the value of the kvdb's incarnation
//
// and it is refused if it breaks I1 or I2. The argument why a fenced domain cannot do harm:
// the record of domain d changes to FENCED at a revision f. A change by a coordinator of d that commits after f compares d's
// record with a revision before f, and loses; so after f no coordinator of d becomes one, evicts, or lets join.
// What remains to it is the configuration it has. With that it gets a write acknowledged only by every member of the in-sync set (I3).
// A takeover in another domain first seals the members it will serve from; each refuses the older term from
// then on (I6), so that the old coordinator is short of an acknowledgement for ever. If no member but its own is in
// the in-sync set then nobody else holds the data: the gate of the deactivation has refused, or the operator
// gave the volume up by name. No clock and no lease has a part in this, nor has the fenced node.
package volume
