package csi

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// hostile are values that a field may be tried with, beside what a fuzzer makes of them.
var hostile = []string{
	"", "a", "..", "../../etc/passwd", "/", "%s%n", "a b", "-rf", "\x00", "a\nb", "\u202e", "\xff\xfe", strings.Repeat("x", 129), strings.Repeat("y", 4097), "';DROP TABLE", "${HOME}", "00000001-0000-4000-8000-000000000007",
	"00000001-0000-4000-8000-000000000007/../x", "00000001-0000-4000-8000-00000000000A", "9223372036854775808", "-1", "null", "true", "max-protection", "1e999",
}

// fill sets every field of m from the values, some of them not: what the bits of which say, one for each field in its order.
func fill(m protoreflect.Message, values []string, number int64, which *uint64, depth int) {
	next := func() string {
		*which = *which>>1 | *which<<63
		return values[*which%uint64(len(values))]
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		*which = *which>>1 | *which<<63
		if *which&1 == 0 || f.ContainingOneof() != nil && m.WhichOneof(f.ContainingOneof()) != nil {
			continue
		}
		switch {
		case f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind:
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(valid(next())).MapKey(), protoreflect.ValueOfString(valid(next())))
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			m.Mutable(f).List().Append(protoreflect.ValueOfString(valid(next())))
		case f.IsList() && f.Kind() == protoreflect.MessageKind && depth < 5:
			fill(m.Mutable(f).List().AppendMutable().Message(), values, number, which, depth+1)
		case f.IsMap(), f.IsList():
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(valid(next())))
		case f.Kind() == protoreflect.MessageKind && depth < 5:
			fill(m.Mutable(f).Message(), values, number, which, depth+1)
		case f.Kind() == protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(number))
		case f.Kind() == protoreflect.Int32Kind:
			m.Set(f, protoreflect.ValueOfInt32(int32(number)))
		case f.Kind() == protoreflect.BoolKind:
			m.Set(f, protoreflect.ValueOfBool(number&1 == 1))
		case f.Kind() == protoreflect.EnumKind:
			m.Set(f, protoreflect.ValueOfEnum(protoreflect.EnumNumber(number&15)))
		}
	}
}

// valid is s as gRPC delivers it: it lets no other strings through.
func valid(s string) string { return strings.ToValidUTF8(s, "?") }

// FuzzFields fills the fields of every request of Identity and Controller, nested ones too, with what is hostile, and what is there, in every mixture.
// Every answer has a code that the specification has for it, and a request that is refused as INVALID_ARGUMENT, NOT_FOUND or OUT_OF_RANGE has changed nothing.
func FuzzFields(f *testing.F) {
	var all []grpc.MethodDesc
	for _, s := range []grpc.ServiceDesc{spec.Identity_ServiceDesc, spec.Controller_ServiceDesc} {
		all = append(all, s.Methods...)
	}
	for i := range all {
		for k, s := range hostile {
			f.Add(uint8(i), s, hostile[(k+7)%len(hostile)], int64(k)<<(3*k%60), uint64(0x9e3779b97f4a7c15)*uint64(k+1))
		}
		f.Add(uint8(i), "n", "n", int64(-1), ^uint64(0))
	}
	f.Fuzz(func(t *testing.T, method uint8, one, two string, number int64, which uint64) {
		c := newCluster()
		d := New(Options{Node: "node-a", Domain: "a", Backend: c, Mounter: c.machine})
		made, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "there", VolumeCapabilities: []*spec.VolumeCapability{raw()}})
		if err != nil {
			t.Fatal(err)
		}
		before := c.dump()
		desc := all[int(method)%len(all)]
		_, err = desc.Handler(d, t.Context(), func(into any) error {
			fill(into.(proto.Message).ProtoReflect(), []string{one, two, made.GetVolume().GetVolumeId(), "there", "node-a", "xfs"}, number, &which, 0)
			return nil
		}, d.intercept)
		switch code := status.Code(err); code {
		case codes.OK, codes.AlreadyExists, codes.FailedPrecondition, codes.ResourceExhausted, codes.Aborted, codes.Unimplemented:
		case codes.InvalidArgument, codes.NotFound, codes.OutOfRange:
			if after := c.dump(); !slices.Equal(after, before) {
				t.Errorf("%s: %v, and there is\n%v, was\n%v", desc.MethodName, err, after, before)
			}
		default:
			t.Errorf("%s: %v", desc.MethodName, err)
		}
		if len(status.Convert(err).Message()) > 1024 {
			t.Errorf("%s answers with %d bytes", desc.MethodName, len(err.Error()))
		}
	})
}

// dump is all that the cluster has.
func (c *cluster) dump() (all []string) {
	for _, id := range slices.Sorted(maps.Keys(c.volumes)) {
		all = append(all, fmt.Sprint(id, " ", c.volumes[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(c.snaps)) {
		all = append(all, fmt.Sprint(id, " ", c.snaps[id]))
	}
	return all
}
