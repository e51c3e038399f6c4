{{- define "tandem.labels" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* Nothing is rendered with the image of values that make no sense, whatever template comes first. */ -}}
{{- define "tandem.image" -}}
{{- $_ := include "tandem.check" . -}}
{{ required "image.repository: name the image that deploy/images/Dockerfile was built into" .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* Where the driver listens, and where the kubelet looks for those who do. */ -}}
{{- define "tandem.pluginDir" -}}
{{ .Values.kubeletDir }}/plugins/csi.tandem.storage
{{- end }}

{{- /* Where an entry of a domain's pools is: a path, or a block of tandemd's configuration. */ -}}
{{- define "tandem.poolPath" -}}
{{ if kindIs "string" . }}{{ . }}{{ else }}{{ required "domains: an entry of pools has no path" .path }}{{ end }}
{{- end }}

{{- /* The name of an entry of domains: of its DaemonSets and its configuration. */ -}}
{{- define "tandem.nodes" -}}
{{ .name }}{{ with .nodeSet }}-{{ . }}{{ end }}
{{- end }}

{{- /* What values.yaml asks for in words. */ -}}
{{- define "tandem.check" -}}
{{- if not .Values.domains }}{{ fail "domains: name at least one, with the nodeSelector of its nodes" }}{{ end }}
{{- $seen := dict }}
{{- range .Values.domains }}
{{- if not .nodeSelector }}{{ fail (printf "domains: %q has no nodeSelector: all nodes would be in it, also those of other domains" .name) }}{{ end }}
{{- $sets := get $seen .name | default list }}
{{- if and (hasKey $seen .name) (or (not .nodeSet) (has "" $sets) (has .nodeSet $sets)) }}
{{- fail (printf "domains: %q is there twice: its entries, one for each part of its nodes, have a nodeSet each, and different ones" .name) }}
{{- end }}
{{- $_ := set $seen .name (append $sets (.nodeSet | default "")) }}
{{- end }}
{{- $raft := len .Values.kvdb.raft.members }}
{{- if and $raft .Values.kvdb.etcd.endpoints }}{{ fail "kvdb: raft.members and etcd.endpoints are both set: choose one" }}{{ end }}
{{- if not (or $raft .Values.kvdb.etcd.endpoints) }}{{ fail "kvdb: set raft.members, or etcd.endpoints" }}{{ end }}
{{- end }}

{{- /* The configuration of the nodes of a domain. Call it with a dict of root and domain. */ -}}
{{- define "tandem.config" -}}
{{- $v := .root.Values }}
{{- $pki := "/pki" }}
{{- $kvdb := dict }}
{{- if $v.kvdb.etcd.endpoints }}
{{- $etcd := dict "endpoints" $v.kvdb.etcd.endpoints }}
{{- if $v.kvdb.etcd.tlsSecret }}
{{- $tls := dict "ca" "/etcd-tls/ca.crt" }}
{{- if $v.kvdb.etcd.clientCertificate }}{{ $tls = merge $tls (dict "cert" "/etcd-tls/tls.crt" "key" "/etcd-tls/tls.key") }}{{ end }}
{{- $_ := set $etcd "tls" $tls }}
{{- end }}
{{- if $v.kvdb.etcd.username }}
{{- $_ := set $etcd "username" $v.kvdb.etcd.username }}
{{- $_ := set $etcd "passwordFile" "/etcd-password/password" }}
{{- end }}
{{- $kvdb = dict "kind" "etcd" "etcd" $etcd }}
{{- else }}
{{- $members := list }}
{{- range $v.kvdb.raft.members }}
{{- $host := ternary (printf "[%s]" .address) .address (contains ":" .address) }}
{{- $members = append $members (dict "id" .node "raftAddr" (printf "%s:%v" $host $v.ports.raft) "peerAddr" (printf "%s:%v" $host $v.ports.peer)) }}
{{- end }}
{{- $kvdb = dict "kind" "raft" "raft" (dict "listen" (printf ":%v" $v.ports.raft) "members" $members "bootstrap" $v.kvdb.raft.bootstrap) }}
{{- end }}
{{- $c := dict "apiVersion" "tandem-storage.github.io/v1" "kind" "Config" "clusterName" $v.clusterName "domain" .domain.name
      "role" (.domain.role | default "node") "dataDir" $v.dataDir "runDir" $v.runDir
      "peer" (dict "listen" (printf ":%v" $v.ports.peer))
      "tls" (dict "ca" (printf "%s/ca.crt" $pki) "cert" (printf "%s/node.crt" $pki) "key" (printf "%s/node.key" $pki))
      "kvdb" $kvdb }}
{{- if ne (.domain.role | default "node") "witness" }}
{{- $_ := set $c "csi" (dict "socket" (printf "%s/csi.sock" (include "tandem.pluginDir" .root)) "registrationSocket" (printf "%s/plugins_registry/csi.tandem.storage-reg.sock" $v.kubeletDir)) }}
{{- $pools := list }}
{{- range .domain.pools }}{{ $pools = append $pools (ternary (dict "path" .) . (kindIs "string" .)) }}{{ end }}
{{- if $pools }}{{ $_ := set $c "pools" $pools }}{{ end }}
{{- with .domain.labels }}{{ $_ := set $c "labels" . }}{{ end }}
{{- if $v.devices.enabled }}{{ $_ := set $c "frontends" (dict "default" "device") }}{{ end }}
{{- end }}
{{- toYaml (mergeOverwrite $c (deepCopy $v.config)) }}
{{- end }}
