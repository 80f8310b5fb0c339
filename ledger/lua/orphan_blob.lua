#!lua flags=allow-oom
-- ARGV: key, grace_ms, 1 to remove
-- On the blobs' server: the bytes of a blob that nobody has touched for the grace; else -1. The caller has
-- found that its batch is not open, and no batch's name is given twice.
if redis.call('EXISTS', ARGV[1]) == 0 then return -1 end
if redis.call('OBJECT', 'IDLETIME', ARGV[1]) * 1000 < tonumber(ARGV[2]) then return -1 end
-- Unlike STRLEN it does not count as touching.
local bytes = redis.call('MEMORY', 'USAGE', ARGV[1])
if ARGV[3] == '1' then redis.call('DEL', ARGV[1]) end
return bytes
