package main

import "strings"

type soakReport struct{}

func (*soakReport) charts() []chart        { return nil }
func (*soakReport) write(*strings.Builder) {}
