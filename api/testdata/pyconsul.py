"""What programs do with Debian's python3-consul, against the agent at argv[1]
whose node is argv[2]. Prints OK at its end."""
import sys

import consul

host, port = sys.argv[1].split(':')
c = consul.Consul(host=host, port=int(port))


def same(what, got, want):
    if got != want:
        sys.exit('FAILED: %s: %r, want %r' % (what, got, want))


same('put', c.kv.put('app/a', 'one'), True)
same('put flags', c.kv.put('app/b', 'two', flags=7), True)
index, got = c.kv.get('app/a')
same('get', (got['Value'], got['ModifyIndex']), (b'one', int(index)))
same('recurse', [e['Key'] for e in c.kv.get('app/', recurse=True)[1]], ['app/a', 'app/b'])
same('keys', c.kv.get('app', keys=True, separator='/')[1], ['app/'])
same('cas', c.kv.put('app/a', 'x', cas=1), False)
same('none', c.kv.get('nothing')[1], None)

session = c.session.create(name='me', ttl=20, behavior='delete')
same('info', c.session.info(session)[1]['NodeChecks'], ['serfHealth'])
same('list', [s['ID'] for s in c.session.list()[1]], [session])
same('node', [s['ID'] for s in c.session.node(sys.argv[2])[1]], [session])
same('acquire', c.kv.put('app/lock', 'me', acquire=session), True)
same('held', c.kv.get('app/lock')[1]['Session'], session)
same('renew', c.session.renew(session)['ID'], session)
same('release', c.kv.put('app/lock', 'me', release=session), True)
same('destroy', c.session.destroy(session), True)
try:
    c.session.renew(session)
    sys.exit('FAILED: a session that is gone was renewed')
except consul.NotFound:
    pass

same('register', c.agent.service.register('app', service_id='app1', port=80, tags=['x'], check=consul.Check.ttl('60s')), True)
same('services', c.agent.services()['app1']['Port'], 80)
same('pass', c.agent.check.ttl_pass('service:app1'), True)
same('check', c.agent.checks()['service:app1']['Status'], 'passing')
same('maintenance', c.agent.service.maintenance('app1', True, 'disk'), True)
same('in maintenance', c.agent.checks()['_service_maintenance:app1']['Notes'], 'disk')
same('out of it', c.agent.service.maintenance('app1', False), True)
same('node maintenance', c.agent.maintenance(True, 'move'), True)
same('in node maintenance', c.agent.checks()['_node_maintenance']['Status'], 'critical')
same('out of node maintenance', c.agent.maintenance(False), True)
same('no check is left', sorted(c.agent.checks()), ['service:app1'])
same('deregister', c.agent.service.deregister('app1'), True)
same('self', c.agent.self()['Config']['NodeName'], sys.argv[2])
same('members', [m['Name'] for m in c.agent.members()], [])

same('catalog', c.catalog.register('box', '10.1.0.9', service={'Service': 'db', 'Port': 5432}), True)
same('nodes', sorted(n['Node'] for n in c.catalog.nodes()[1]), ['box', sys.argv[2]])
same('health', [i['Service']['Port'] for i in c.health.service('db', passing=True)[1]], [5432])
same('catalog service', c.catalog.service('db')[1][0]['ServicePort'], 5432)
same('state', len(c.health.state('critical')[1]), 0)
same('datacenters', len(c.catalog.datacenters()), 1)
same('leader', c.status.leader(), '10.1.0.1:8300')
print('OK')
