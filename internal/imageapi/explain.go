package imageapi

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	imagev1 "github.com/davit-runtime/davit/api/image/v1"
	"github.com/davit-runtime/davit/internal/image"
	"github.com/davit-runtime/davit/internal/registry"
	"github.com/davit-runtime/davit/internal/registry/route"
)

func (s *service) Explain(ctx context.Context, r *imagev1.ExplainRequest) (*imagev1.ExplainResponse, error) {
	auth := image.Auth{Username: r.GetCredentials().GetUsername(), Password: r.GetCredentials().GetPassword()}
	all, err := s.Registries.Explain(ctx, r.Image, auth, r.Probe)
	if err != nil {
		return nil, err
	}
	answer := &imagev1.ExplainResponse{}
	for _, x := range all {
		told := &imagev1.Route{Image: utf8(x.Name), Short: setting(x.Short), Blocked: setting(x.Blocked)}
		for _, e := range x.Endpoints {
			told.Endpoints = append(told.Endpoints, endpoint(e))
		}
		answer.Routes = append(answer.Routes, told)
	}
	return answer, nil
}

func endpoint(e registry.Explained) *imagev1.Endpoint {
	told := &imagev1.Endpoint{
		Url: utf8(e.URL), Home: e.Home, Pull: e.Pull, Resolve: e.Resolve, Plain: e.Plain, Namespace: utf8(e.Namespace), Proxy: utf8(e.Proxy),
	}
	for _, s := range e.Settings {
		told.Settings = append(told.Settings, setting(&s))
	}
	if a := e.Answer; a != nil {
		told.Probe = &imagev1.Probe{Url: utf8(a.URL), Digest: utf8(a.Digest), Error: utf8(a.Err), Took: durationpb.New(a.Took)}
	}
	return told
}

func setting(s *route.Setting) *imagev1.Setting {
	if s == nil {
		return nil
	}
	return &imagev1.Setting{Name: utf8(s.Key), Value: utf8(s.Value), From: utf8(s.Source)}
}
