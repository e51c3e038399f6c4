package clusterdomain

import "fmt"

// Keys of the kvdb that this package owns, all under /tandem/<cluster>/.

func root(cluster string) string { return "/tandem/" + cluster + "/" }

// IncarnationKey holds which life of the kvdb's content this is. Every change of a
// volume's configuration compares its value; a restore from a backup writes a new one.
func IncarnationKey(cluster string) string { return root(cluster) + "incarnation" }

// DomainKey holds a Domain, see ParseDomain.
func DomainKey(cluster, domain string) string { return domainPrefix(cluster) + domain }

// ShrunkKey is written, with any value, by every transaction that makes the in-sync set of a volume smaller and
// keeps a member in this domain, or that makes a new volume with one: the gate of Deactivate compares it.
func ShrunkKey(cluster, domain string) string { return root(cluster) + "shrunk/" + domain }

func domainPrefix(cluster string) string { return root(cluster) + "dom/" }

// nodePrefix: registrations, attached to leases.
func nodePrefix(cluster string) string { return root(cluster) + "node/" }

// knownPrefix: the same records, which stay when the node is gone.
func knownPrefix(cluster string) string { return root(cluster) + "known/" }

// restartsKey holds the nodes that were given leave to restart and are not back, see PlanRestart.
func restartsKey(cluster string) string { return root(cluster) + "restarts" }

// lastFailoverKey holds the FailoverRecord of the last automatic failover without its volumes. Each one compares and
// writes it, so that two never take place at once.
func lastFailoverKey(cluster string) string { return root(cluster) + "failover/last" }

// failoverPrefix: FailoverRecords, the oldest first.
func failoverPrefix(cluster string) string { return root(cluster) + "failover/record/" }

func failoverKey(cluster string, id uint64) string { return failoverPrefix(cluster) + idText(id) }

// movedPrefix: a Moved for each volume that was attached by itself in one failover, by its id.
func movedPrefix(cluster string, id uint64) string {
	return movedOf(cluster, idText(id))
}

func movedOf(cluster, id string) string { return root(cluster) + "failover/volume/" + id + "/" }

func idText(id uint64) string { return fmt.Sprintf("%010d", id) }
