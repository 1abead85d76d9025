-- Takes a decision: `decide` of lifecycle/vote.rs. With it, in one step: the audit entry, the entry
-- in the outbox by which the task is resumed, and the bell.
-- KEYS[1] the decision record
-- KEYS[2] the outbox
-- KEYS[3] the audit stream
-- ARGV    approval id, decision id, choice, who, digest, edited, the decision, channel of the bell,
--         how many entries the audit keeps about, how long what was said is kept after the deadline in
--         seconds, digest of the edited arguments, nonce of the request that was seen ('': not said), 1 if
--         it is of a policy that counts in a quorum
-- Returns the answer, and what belongs to it; for one that is applied, what to send.
local PARK = 'cs:park:{cs}:'
local id, decision, choice, by, digest = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = now_in_ms()

local fields = { 'digest', 'quorum', 'requester', 'self', 'approvers', 'editable', 'task',
  'nonce' }
local ask = redis.call('HMGET', ASK .. id, unpack(fields))
if not ask[1] then
  return { 'unknown' }
end
local state, at, is_same = standing(id, now)
if not is_same then
  redis.call('DEL', KEYS[1])
end
local ballot = redis.call('HMGET', KEYS[1], 'decision', 'by', 'vote:' .. by, 'votes')
if ballot[1] == decision or ballot[3] == decision then
  return { 'replayed' }
elseif state == 'withdraw' then
  return { 'withdrawn' }
elseif state == 'approve' or state == 'reject' then
  return { 'decided', ballot[2], whole(at), state }
elseif state == 'expired' then
  return { 'expired', whole(at) }
elseif digest ~= ask[1] or (ARGV[12] ~= '' and ARGV[12] ~= (ask[8] or '')) then
  return { 'digest' }
end

local quorum = tonumber(ask[2])
local is_named, is_requester = roles(ask[3], ask[5], by)
local is_policy = string.sub(by, 1, 7) == 'policy:'
local is_own = choice == 'approve' and is_requester and ask[4] ~= '1'
local is_no_person = choice == 'approve' and is_policy and quorum > 1 and ARGV[13] ~= '1'
local is_refused_edit = ARGV[6] == '1' and not (ask[6] == '1' and quorum == 1)
if not (choice == 'withdraw' and is_requester)
  and (not is_named or is_own or is_no_person or is_refused_edit) then
  return { 'forbidden' }
end

local audit = { 'XADD', KEYS[3], 'MAXLEN', '~', ARGV[9], '*', 'what', choice, 'approval', id,
  'task', ask[7] or '', 'by', by, 'digest', digest, 'decision', ARGV[7] }
if ARGV[11] ~= '' then
  audit[#audit + 1], audit[#audit + 2] = 'edited_digest', ARGV[11]
end
if not is_same then
  turn_to(id)
end
keep(id, at, now, ARGV[10])
if choice == 'approve' then
  local votes = tonumber(ballot[4] or '0')
  local has_voted = ballot[3]
  -- All policies have one vote, so that one that is renamed does not vote again.
  local said = is_policy and redis.call('HGETALL', KEYS[1]) or {}
  for n = 1, #said, 2 do
    has_voted = has_voted or string.sub(said[n], 1, 12) == 'vote:policy:'
  end
  if not has_voted then
    votes = votes + 1
    redis.call('HSET', KEYS[1], 'vote:' .. by, decision, 'votes', whole(votes))
    redis.call(unpack(audit))
  end
  if votes < quorum then
    return { 'counted', whole(votes), whole(quorum) }
  end
else
  redis.call(unpack(audit))
end
redis.call('HSET', KEYS[1], 'choice', choice, 'by', by, 'at', whole(now), 'decision', decision,
  'document', ARGV[7])
redis.call('PUBLISH', ARGV[8], id)

local park = redis.call('HMGET', PARK .. (ask[7] or ''), 'number', 'queue', 'waits', 'ended')
local waits = ' ' .. (park[3] or '') .. ' '
if not park[1] or park[4] == '1' or not string.find(waits, ' ' .. id .. ' ', 1, true) then
  return { 'applied' }
end
local entry = cjson.encode({ ask[7], park[1], park[2] or '' })
redis.call('ZADD', KEYS[2], whole(now), entry)
return { 'applied', entry }
