// Package auditpb is the service of the audit trail in protobuf, generated from the file beside it.
package auditpb
