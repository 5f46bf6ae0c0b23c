# waypost agent -config-file=waypost.hcl
data_dir = "/var/lib/waypost"
ui       = true

service {
  name = "database"
  port = 5432
  tags = ["primary"]
  meta { zone = "a" }
  check {
    tcp      = "127.0.0.1:5432"
    interval = "10s"
    timeout  = "1s"
  }
}

template {
  source      = "/etc/waypost/hosts.ctmpl"
  destination = "/run/waypost/hosts"
  command     = "echo hosts changed"
}

balancer {
  domain = "example.com"
}
